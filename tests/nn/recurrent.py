"""What the tests of recurrent layers share: every kind of layer, and inputs of every form."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

SEQUENCES = {
    "rnn": lambda **options: nn.RNN(3, 4, **options),
    "relu": lambda **options: nn.RNN(3, 4, nonlinearity="relu", **options),
    "lstm": lambda **options: nn.LSTM(3, 4, **options),
    "projected": lambda **options: nn.LSTM(3, 4, proj_size=2, **options),
    "gru": lambda **options: nn.GRU(3, 4, **options),
}  # fmt: skip
CELLS = {
    "rnn cell": lambda **options: nn.RNNCell(3, 4, **options),
    "relu cell": lambda **options: nn.RNNCell(3, 4, nonlinearity="relu", **options),
    "lstm cell": lambda **options: nn.LSTMCell(3, 4, **options),
    "gru cell": lambda **options: nn.GRUCell(3, 4, **options),
}  # fmt: skip
ALL = SEQUENCES | CELLS
FORMS = ["padded", "single", "packed", "unsorted"]
SMALL = 1e-3  # a std at which outputs are linear in the noise


def tensors(output: Any) -> list[Tensor]:
    """All tensors of an output, PackedSequences by their rows."""
    if isinstance(output, PackedSequence):
        return [output.data]
    return [output] if isinstance(output, Tensor) else [tensor for part in output for tensor in tensors(part)]


def flat(output: Any) -> Tensor:
    return torch.cat([each.flatten() for each in tensors(output)])


def inputs_for(plain: Any, form: str, with_state: bool) -> tuple[Any, ...]:
    """Three sequences of up to five steps, or one, in the layer's dtype; for cells, three examples or one."""
    dtype = next(plain.parameters()).dtype
    cell = isinstance(plain, nn.RNNCellBase)
    examples = () if form == "single" else (3,)
    if form in ("padded", "single"):
        shape = (*examples, 3) if cell else (5, *examples, 3)
        x: Any = torch.randn(shape, dtype=dtype)
        x = x.transpose(0, 1) if form == "padded" and not cell and plain.batch_first else x
    else:
        lengths = [5, 3, 3] if form == "packed" else [2, 5, 1]
        sequences = [torch.randn(length, 3, dtype=dtype) for length in lengths]
        x = pack_sequence(sequences, enforce_sorted=form == "packed")
    if not with_state:
        return (x,)
    count = () if cell else (plain.num_layers * (2 if plain.bidirectional else 1),)
    sizes = [getattr(plain, "proj_size", 0) or 4, 4] if isinstance(plain, nn.LSTM | nn.LSTMCell) else [4]
    states = tuple(torch.randn(*count, *examples, size, dtype=dtype) for size in sizes)
    return x, states if len(states) > 1 else states[0]


def set_std(layer: Any, std: float) -> None:
    for name in layer.means():
        layer.set_std(name, std)


def copied(layer: Any, way: str) -> Any:
    if way == "deepcopy":
        return copy.deepcopy(layer)
    if way == "pickle":
        return pickle.loads(pickle.dumps(layer))
    if way == "state_dict":
        twin = copy.deepcopy(layer)
        for parameter in twin.parameters():
            parameter.data.zero_()
        twin.load_state_dict(layer.state_dict())
        return twin
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    return torch.load(file, weights_only=True)
