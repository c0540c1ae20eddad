"""nn.RNN, nn.LSTM and nn.GRU, of any number of layers and directions, on packed sequences too; and their cells.

Under Flipout an example is a sequence: each weight matrix has one draw for it, shared over time (Wen et al. 2018,
section 4). The steps run in Python: the fused kernels (cuDNN, oneDNN) know of no noise. docs/recurrent.md says what
that costs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from ..errors import ShapeError, UsageError
from ..estimators.eager import transforming
from ..estimators.gates import GATES, State
from ..estimators.precision import autocasted
from .base import LRT, Flipout, Variational
from .held_draws import held_draws
from .hooks import mark_reached
from .layer_kinds import LayerKind, batch_first_dims, describe
from .recurrent_steps import Layout, direction, stepwise
from .switches import is_quiet

__all__ = [
    "LRTGRU",
    "LRTLSTM",
    "LRTRNN",
    "FlipoutGRU",
    "FlipoutGRUCell",
    "FlipoutLSTM",
    "FlipoutLSTMCell",
    "FlipoutRNN",
    "FlipoutRNNCell",
    "LRTGRUCell",
    "LRTLSTMCell",
    "LRTRNNCell",
]


class RecurrentFamily(Variational):
    """A recurrent layer over whole sequences."""

    mode: str
    num_layers: int
    batch_first: bool
    dropout: float
    bidirectional: bool
    proj_size: int
    _flat_weights_names: list[str]
    permute_hidden: Any
    check_forward_args: Any
    get_expected_hidden_size: Any
    get_expected_cell_size: Any

    def forward(self, input: Any, hx: Any = None, *, return_kl: bool = False) -> Any:  # type: ignore[override]
        """The plain layer's forward, with noise; an example is a sequence of the batch, in either layout."""
        mark_reached(self)
        if is_quiet(self):
            output = super().forward(input, hx)
        elif (drawn := self._drawn()) is not None:
            output = super(Variational, drawn).forward(input, hx)
        else:
            noisy = self._packed if isinstance(input, PackedSequence) else self._padded
            output = (noisy if torch.compiler.is_compiling() else _uncompiled(noisy))(input, hx)
        return (output, self.kl_divergence()) if return_kl else output

    def _drawn(self) -> Any:
        """This layer with the only draw that is held in place of its means; None where torch's kernel cannot serve.

        It has no second derivative, and on a GPU it warns of weights that lie apart.
        """
        held = held_draws(self)
        if held is None or held.draws > 1 or torch.is_grad_enabled() or torch.compiler.is_compiling() or transforming():
            return None
        names = self._flat_weights_names
        weights = [self.mean_of(name) if self.scale_of(name) is None else self._sampled(name) for name in names]
        if any(weight.is_cuda for weight in weights):
            return None
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__, _flat_weights=weights)
        return twin

    def _padded(self, x: Tensor, hx: Any) -> tuple[Tensor, Any]:
        batched = x.dim() != 2
        if not batched:
            x = x.unsqueeze(0 if self.batch_first else 1)
            hx = _each(hx, lambda state: state.unsqueeze(1))
        state = self._initial(x, hx, None)
        x = x.transpose(0, 1) if self.batch_first else x
        steps, examples = x.shape[:2]
        if steps == 0:
            raise ShapeError("Expected sequence length to be larger than 0 in RNN")
        output, final = self._layers(x, state, Layout([examples] * steps))
        if not batched:
            return output.squeeze(1), _each(final, lambda state: state.squeeze(1))
        return output.transpose(0, 1) if self.batch_first else output, final

    def _packed(self, x: PackedSequence, hx: Any) -> tuple[PackedSequence, Any]:
        held = held_draws(self)
        if held is not None and held.draws > 1:
            raise UsageError(f"draws={held.draws}: packed sequences of several draws; pad them, or hold one draw")
        hx = hx if hx is None else self.permute_hidden(hx, x.sorted_indices)
        state = self._initial(x.data, hx, x.batch_sizes)
        rows, final = self._layers(x.data, state, Layout.packed(x.batch_sizes, x.data.device))
        output = PackedSequence(rows, x.batch_sizes, x.sorted_indices, x.unsorted_indices)
        return output, self.permute_hidden(final, x.unsorted_indices)

    def _initial(self, x: Tensor, hx: Any, batch_sizes: Tensor | None) -> State:
        """The states before the first step, each (layers·directions, examples, size)."""
        if hx is None:
            sizes = [self.get_expected_hidden_size(x, batch_sizes)]
            sizes += [self.get_expected_cell_size(x, batch_sizes)] if isinstance(self, nn.LSTM) else []
            zeros = tuple(x.new_zeros(size) for size in sizes)
            hx = zeros if isinstance(self, nn.LSTM) else zeros[0]
        self.check_forward_args(x, hx, batch_sizes)
        return tuple(hx) if isinstance(self, nn.LSTM) else (hx,)

    def _layers(self, rows: Tensor, state: State, layout: Layout) -> tuple[Tensor, Any]:
        rows, *started = autocasted(rows, *state)
        ends: list[State] = []
        for layer in range(self.num_layers):
            x, outputs = layout.spread(rows), []
            for suffix in ("", "_reverse") if self.bidirectional else ("",):
                start = tuple(states[len(ends)] for states in started)
                output, end = direction(self, self.mode, x, f"_l{layer}{suffix}", start, layout)
                outputs.append(output)
                ends.append(end)
            rows = torch.cat(outputs, dim=-1) if self.bidirectional else outputs[0]
            if layer < self.num_layers - 1:
                rows = F.dropout(rows, self.dropout, self.training)
        final = tuple(torch.stack(states) for states in zip(*ends, strict=True))
        return rows, final if isinstance(self, nn.LSTM) else final[0]


class CellFamily(Variational):
    """One step of a recurrent layer. A cell draws anew at each call, so that the steps of a loop share no draw."""

    hidden_size: int
    nonlinearity: str

    def forward(self, input: Tensor, hx: Any = None, *, return_kl: bool = False) -> Any:  # type: ignore[override]
        """The plain cell's forward, with noise of this call's own."""
        mark_reached(self)
        output = super().forward(input, hx) if is_quiet(self) else self._step(input, hx)
        return (output, self.kl_divergence()) if return_kl else output

    def _step(self, x: Tensor, hx: Any) -> Any:
        batched = x.dim() != 1
        if not batched:
            x, hx = x.unsqueeze(0), _each(hx, lambda state: state.unsqueeze(0))
        if x.dim() != 2:
            raise ShapeError(f"{type(self).__name__}: Expected input to be 1D or 2D, got {x.dim()}D instead")
        state, gates = self._initial(x, hx), GATES[self._mode()]
        inputs, hidden = stepwise(self, "weight_ih"), stepwise(self, "weight_hh")
        state = gates.step(gates.together(inputs(x), hidden(state[0])), state)
        state = state if batched else tuple(part.squeeze(0) for part in state)
        return state if len(state) > 1 else state[0]

    def _initial(self, x: Tensor, hx: Any) -> State:
        size, lstm = (x.shape[0], self.hidden_size), isinstance(self, nn.LSTMCell)
        if hx is None:
            return (x.new_zeros(size),) * (2 if lstm else 1)
        state = tuple(hx) if lstm else (hx,)
        if any(part.shape != size for part in state):
            shapes = ", ".join(str(tuple(part.shape)) for part in state)
            raise ShapeError(f"Expected hidden size {size}, got {shapes}")
        return state

    def _mode(self) -> str:
        if isinstance(self, nn.RNNCell):
            return f"RNN_{self.nonlinearity.upper()}"
        return "LSTM" if isinstance(self, nn.LSTMCell) else "GRU"


class FlipoutRNN(RecurrentFamily, Flipout, nn.RNN):
    """nn.RNN under Flipout: one draw of the weights per sequence, shared over time."""


class LRTRNN(RecurrentFamily, LRT, nn.RNN):
    """nn.RNN under local reparameterization, which draws per step and ignores that steps share the weights."""


class FlipoutLSTM(RecurrentFamily, Flipout, nn.LSTM):
    """nn.LSTM under Flipout: one draw of the weights per sequence, shared over time."""


class LRTLSTM(RecurrentFamily, LRT, nn.LSTM):
    """nn.LSTM under local reparameterization, which draws per step and ignores that steps share the weights."""


class FlipoutGRU(RecurrentFamily, Flipout, nn.GRU):
    """nn.GRU under Flipout: one draw of the weights per sequence, shared over time."""


class LRTGRU(RecurrentFamily, LRT, nn.GRU):
    """nn.GRU under local reparameterization, which draws per step and ignores that steps share the weights."""


class FlipoutRNNCell(CellFamily, Flipout, nn.RNNCell):
    """nn.RNNCell under Flipout. A cell draws anew at each call."""


class LRTRNNCell(CellFamily, LRT, nn.RNNCell):
    """nn.RNNCell under local reparameterization. A cell draws anew at each call."""


class FlipoutLSTMCell(CellFamily, Flipout, nn.LSTMCell):
    """nn.LSTMCell under Flipout. A cell draws anew at each call."""


class LRTLSTMCell(CellFamily, LRT, nn.LSTMCell):
    """nn.LSTMCell under local reparameterization. A cell draws anew at each call."""


class FlipoutGRUCell(CellFamily, Flipout, nn.GRUCell):
    """nn.GRUCell under Flipout. A cell draws anew at each call."""


class LRTGRUCell(CellFamily, LRT, nn.GRUCell):
    """nn.GRUCell under local reparameterization. A cell draws anew at each call."""


def _uncompiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Dynamo leaves recurrent layers to eager mode, but what they call it would unroll, anew for every length."""
    # to ask for it imports Dynamo, which takes seconds and which nobody uses who has not imported it
    disable: Any = torch.compiler.disable
    return cast("Callable[..., Any]", disable(function) if "torch._dynamo" in sys.modules else function)


def _each(hx: Any, change: Any) -> Any:
    """The change made to every state of `hx`, whatever the layer's form of it is."""
    if hx is None:
        return None
    return change(hx) if isinstance(hx, Tensor) else tuple(change(state) for state in hx)


def _flat_names(start: str) -> Callable[[Any], list[str]]:
    return lambda layer: [name for name in layer._flat_weights_names if name.startswith(start)]


describe(
    nn.RNNBase,
    LayerKind(
        weights=_flat_names("weight"),
        biases=_flat_names("bias"),
        example_dims=batch_first_dims,
        layout="batch_first",
        on_sequences=True,
        maskable=True,
        lrt="LRT draws per time step, though the steps of a sequence share the weights",
    ),
)
describe(
    nn.RNNCellBase,
    LayerKind(
        weights=lambda layer: ("weight_ih", "weight_hh"),
        biases=lambda layer: ("bias_ih", "bias_hh"),
        example_dims=lambda layer, x: (0,) if x.dim() == 2 else (),
        layout="step",
        maskable=True,
    ),
)
