"""What `bayesify predict` reads and writes: inputs as .npz, .pt, .safetensors or .csv, predictions as .npz or .csv."""

from __future__ import annotations

import csv
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ..errors import FileRefusedError, UsageError
from ..files.read_weights import read_content
from ..uncertainty.prediction import Prediction, is_float, leaf_name
from .input_options import read_inputs

_BATCH = 256  # rows in one forward pass
READ, WRITTEN = (".npz", ".pt", ".safetensors", ".csv"), (".npz", ".csv")


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
    if not Path(path).is_file():
        raise UsageError(f"{path}: there is no such file")
    if ending == ".csv":
        return (_read_csv(path).to(dtype),)
    if ending == ".pt":
        inputs = read_inputs(path)
        return inputs if isinstance(inputs, tuple) else (inputs,)
    named = _read_npz(path, dtype) if ending == ".npz" else dict(read_content(Path(path), meta=False))
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


def write_prediction(prediction: Prediction, path: str) -> None:
    """Every number of the prediction: .npz, each part by its name; .csv, one example a line, a column for each number.

    Raises:
        UsageError: the outputs have more dimensions than a table.
    """
    parts = _parts(prediction)
    if Path(path).suffix.lower() == ".npz":
        np.savez(path, **parts)
        return
    columns: dict[str, Any] = {}
    for name, array in parts.items():
        if array.ndim > 2 or array.ndim == 0:
            raise UsageError(f"{path}: `{name}` has shape {array.shape}, and a table has rows and columns: -o out.npz")
        single = array.ndim == 1
        columns |= {name: array} if single else {f"{name}_{at}": array[:, at] for at in range(array.shape[1])}
    lengths = {len(column) for column in columns.values()}
    if len(lengths) > 1:
        raise UsageError(f"{path}: columns of {sorted(lengths)} rows are not a table: -o out.npz")
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))


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


def _read_npz(path: str, dtype: torch.dtype) -> dict[str, Tensor]:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    except (ValueError, OSError, EOFError, TypeError, zipfile.BadZipFile) as error:
        raise FileRefusedError(f"{path}: is not an .npz file of numbers ({error}); write it by np.savez") from None
    return {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}


def _read_csv(path: str) -> Tensor:
    with open(path, newline="") as file:
        rows = [row for row in csv.reader(file) if row]
    if rows and not _numbers(rows[0]):
        rows = rows[1:]
    if not rows:
        raise FileRefusedError(f"{path}: has no line of numbers")
    values = []
    for line, row in enumerate(rows, 1):
        numbers = _numbers(row)
        if numbers is None or len(row) != len(rows[0]):
            raise FileRefusedError(f"{path}: line {line} of the numbers is not {len(rows[0])} of them: {','.join(row)}")
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
