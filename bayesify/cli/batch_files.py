"""What `bayesify predict` reads and writes: inputs as .npz, .pt, .safetensors or .csv, predictions as .npz or .csv."""

from __future__ import annotations

import contextlib
import csv
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ..errors import BayesifyError, FileRefusedError, UsageError
from ..escaping import first_line, printable
from ..files.read_weights import read_content
from ..files.untrusted.content import opened
from ..files.untrusted.numpy_file import read_npz
from ..uncertainty.prediction import Prediction, is_float, leaf_name
from .input_options import read_inputs

_BATCH = 256  # rows in one forward pass
READ, WRITTEN = (".npz", ".pt", ".safetensors", ".csv"), (".npz", ".csv")


@contextlib.contextmanager
def runs_on(*paths: str) -> Iterator[None]:
    """What a model's own code says against inputs from these files, as one error of ours.

    Raises:
        UsageError: from whatever the block raises that is no error of ours or the system's.
    """
    try:
        yield
    except (BayesifyError, OSError, MemoryError):
        raise
    except Exception as error:
        if not paths:
            raise
        what = f"{type(error).__name__}: {first_line(error)}"
        raise UsageError(f"{', '.join(paths)}: the model fails with these inputs: {what}") from error


def read_batch(path: str, dtype: torch.dtype) -> tuple[Any, ...]:
    """The arguments of a model in a file: tensors by place, or one mapping of them by name.

    Args:
        path: .npz of `np.savez` (by place), or `np.savez(name=...)` and .safetensors (by name, one alone by place); .pt
            of torch.save; .csv of numbers, one example a line, under a line of names or none.
        dtype: what floats of .npz and .csv become: numpy's are float64.

    Raises:
        FileRefusedError: broken, malicious, or with more in it than numbers.
        UsageError: there is no such file, or its ending says nothing.
    """
    ending = Path(path).suffix.lower()
    if ending not in READ:
        raise UsageError(f"{path}: inputs are read from files that end in {', '.join(READ)}")
    if ending == ".csv":
        return (_read_csv(path).to(dtype),)
    if ending == ".pt":
        inputs = read_inputs(path)
        return inputs if isinstance(inputs, tuple) else (inputs,)
    named = _named(path, ending, dtype)
    unnamed = len(named) == 1 or all(name.startswith("arr_") for name in named)
    return tuple(named.values()) if unnamed else (named,)


def read_labelled(path: str, dtype: torch.dtype, task: str | None) -> list[Any]:
    """Batches of what `read_batch` reads, with targets: (inputs..., target), or mappings; of a table the last column.

    Raises:
        FileRefusedError, UsageError: as `read_batch`; or the table has one column only.
    """
    parts = read_batch(path, dtype)
    if Path(path).suffix.lower() == ".csv":
        (table,) = parts
        if table.shape[1] < 2:
            raise UsageError(f"{path}: has one column, and inputs and a target need two at least")
        target = table[:, -1].long() if task == "classification" else table[:, -1:]
        parts = (table[:, :-1], target)
    whole = parts[0] if len(parts) == 1 else tuple(parts)
    rows = max((len(leaf) for leaf in pytree.tree_leaves(whole) if isinstance(leaf, Tensor) and leaf.dim()), default=0)
    return [pytree.tree_map_only(Tensor, _rows(start, rows), whole) for start in range(0, rows, _BATCH)]


def _rows(start: int, rows: int) -> Any:
    """Takes so many rows of a tensor that has `rows`, and leaves another as it is."""
    return lambda tensor: tensor[start : start + _BATCH] if tensor.dim() and len(tensor) == rows else tensor


def place_of(part: str | None) -> str | int | None:
    """A part of an output by its place, where it is a number, or by its name."""
    return int(part) if part is not None and part.lstrip("-").isdigit() else part


def write_prediction(prediction: Prediction, path: str, file: BinaryIO) -> None:
    """Write every number of the prediction. .npz: each part by its name; .csv: one example a line, a column a number.

    Raises:
        UsageError: the outputs have more dimensions than a table.
    """
    parts = _parts(prediction)
    if Path(path).suffix.lower() == ".npz":
        arrays: Any = parts
        np.savez(file, **arrays)
        return
    columns = _columns(parts, path)
    text = io.TextIOWrapper(file, "utf-8", newline="")
    writer = csv.writer(text)
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    text.detach()


def _columns(parts: dict[str, Any], path: str) -> dict[str, Any]:
    columns: dict[str, Any] = {}
    for name, array in parts.items():
        if array.ndim > 2 or array.ndim == 0:
            raise UsageError(f"{path}: `{name}` has shape {array.shape}, and a table has rows and columns: -o out.npz")
        single = array.ndim == 1
        columns |= {name: array} if single else {f"{name}_{at}": array[:, at] for at in range(array.shape[1])}
    lengths = {len(column) for column in columns.values()}
    if len(lengths) > 1:
        raise UsageError(f"{path}: columns of {sorted(lengths)} rows are not a table: -o out.npz")
    return columns


def check_ending(path: str) -> None:
    """Refuse an output of an unknown kind.

    Raises:
        UsageError: it is neither .npz nor .csv.
    """
    if Path(path).suffix.lower() not in WRITTEN:
        raise UsageError(f"{path}: predictions are written to files that end in {' or '.join(WRITTEN)}")


def _parts(prediction: Prediction) -> dict[str, Any]:
    """Arrays by name: `mean`, or where the output has parts, `mean.logits`."""
    names = ["mean", "total", "aleatoric", "epistemic", "std"]
    names += ["label", "confidence"] if prediction.task == "classification" else []
    parts = {}
    for name in names:
        for path, leaf in pytree.tree_flatten_with_path(getattr(prediction, name))[0]:
            if isinstance(leaf, Tensor) and (is_float(leaf) or name == "label"):
                place = leaf_name(path)
                own = leaf.float() if leaf.dtype is torch.bfloat16 else leaf
                parts[f"{name}.{place}" if place else name] = own.cpu().numpy()
    return parts


def _named(path: str, ending: str, dtype: torch.dtype) -> dict[str, Tensor]:
    if ending == ".npz":
        with opened(path) as content:
            arrays = read_npz(content)
        try:
            tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        except TypeError as error:
            raise FileRefusedError(f"{path}: has numbers that torch has not ({error})") from None
        return {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    found = read_content(Path(path))
    if not isinstance(found, Mapping) or not all(isinstance(tensor, Tensor) for tensor in found.values()):
        raise FileRefusedError(f"{path}: holds other things than tensors by name")
    return dict(found)


def _read_csv(path: str) -> Tensor:
    with opened(path) as content:
        data = content.read(0, content.size)
    try:
        rows = [row for row in csv.reader(io.StringIO(data.decode("utf-8-sig"), newline="")) if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise FileRefusedError(f"{path}: is not a table of numbers ({error})") from None
    if rows and not _numbers(rows[0]):
        rows = rows[1:]
    if not rows:
        raise FileRefusedError(f"{path}: has no line of numbers")
    values = []
    for line, row in enumerate(rows, 1):
        numbers = _numbers(row)
        if numbers is None or len(row) != len(rows[0]):
            shown = printable(",".join(row)[:80])
            raise FileRefusedError(f"{path}: line {line} of the numbers is not {len(rows[0])} of them: {shown}")
        values.append(numbers)
    return torch.tensor(values, dtype=torch.float64)


def _numbers(row: list[str]) -> list[float] | None:
    try:
        return [float(cell) for cell in row]
    except ValueError:
        return None


def summary(prediction: Prediction, samples: int, output: str | None) -> dict[str, Any]:
    """What a prediction says on the whole: shapes, and means over everything that was predicted."""
    parts = _parts(prediction)
    told = ("total", "aleatoric", "epistemic", "confidence")
    return {
        "task": prediction.task,
        "samples": samples,
        "shapes": {name: list(array.shape) for name, array in parts.items() if name.partition(".")[0] == "mean"},
        "means": {name: float(array.mean()) for name, array in parts.items() if name.partition(".")[0] in told},
        "output": output,
    }
