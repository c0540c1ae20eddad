"""Where a batch's examples are in what a layer is called with: one example after another is changed, and the rows that
change with it are its own.

In two sizes of the batch, this tells apart all ways to fold the batch into a dimension.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import zip_longest

import torch
from torch import Tensor, nn

from ...errors import UsageError
from .example_inputs import Example
from .run import OUTPUT, Calls, Seen, run

MIXED = "its rows hold no single example each"
DATA = "its number of rows depends on the data"
_FOLLOWED = 16  # of the examples of a batch of fixed size


@dataclass(frozen=True)
class BatchLayout:
    """Where the examples are: `batch_dim`, `rows` and `run` as `Settings` explains them."""

    dim: int
    rows: int = 1
    run: int = 0


@dataclass
class Marked:
    """One call of a layer in a batch of `size` examples.

    Attributes:
        shape: of the tensor that the layer multiplies.
        dims: its dimensions that may hold examples; None where the layer itself knows.
        touched: for each example, along each dimension, which rows change with it; None where the shape changes.
    """

    size: int
    shape: tuple[int, ...]
    dims: tuple[int, ...] | None
    touched: list[list[Tensor] | None] = field(default_factory=list)

    def mark(self, base: Tensor, other: Tensor | None) -> None:
        """Note which rows change with the next example."""
        if other is None or base.shape != other.shape:
            self.touched.append(None)
            return
        changed = _changed(base, other)
        others = [[at for at in range(base.dim()) if at != dim] for dim in range(base.dim())]
        self.touched.append([changed.sum(dims).gt(0).cpu() if dims else changed.cpu() for dims in others])

    @property
    def untouched(self) -> bool:
        """Whether no example changes it."""
        return not any(rows.any() for by_dim in self.touched for rows in by_dim or ())

    def fits(self, dim: int, run: int) -> bool:
        """Whether an example changes only its own rows, if they stand together in runs of `run` (0: all together)."""
        run = run or self.shape[dim] // self.size
        owner = torch.arange(self.shape[dim]) // run % self.size
        return all(
            by_dim is not None and not (by_dim[dim] & (owner != at)).any() for at, by_dim in enumerate(self.touched)
        )


def marked(model: nn.Module, layers: Mapping[str, nn.Module], example: Example) -> dict[str, list[Marked]] | None:
    """The calls of the layers, with what each example changes in them; None where the examples cannot be changed."""
    with torch.no_grad():
        base, _ = run(model, layers, example)
        marks = {name: [_marked(example, seen) for seen in calls] for name, calls in base.of.items()}
        for index in range(min(example.size, _FOLLOWED)):
            other = _with_another(model, layers, example, index)
            if other is None:
                return None
            for name, calls in base.of.items():
                for mark, before, after in zip_longest(marks[name], calls, other.of.get(name, [])):
                    if mark is not None:
                        mark.mark(before.x, None if after is None else after.x)
    layers_marks = [mark for name, calls in marks.items() if name != OUTPUT for mark in calls]
    return None if all(mark.untouched for mark in layers_marks) else marks


def _with_another(model: nn.Module, layers: Mapping[str, nn.Module], example: Example, index: int) -> Calls | None:
    """The calls where one example is another one: of values of its own, or where the model takes none (ids), of those
    of its neighbour."""
    for changed in (example.marked, example.exchanged):
        with suppress(UsageError):
            return run(model, layers, changed(index))[0]
    return None


def batch_layout_of(call: Sequence[Marked]) -> BatchLayout | str | None:
    """Where the examples are in one call, seen in batches of one or two sizes; or why that cannot be told."""
    first = call[0]
    if first.dims is None:
        return None
    if any(None in mark.touched for mark in call) or len({len(mark.shape) for mark in call}) != 1:
        return DATA
    scaling = [dim for dim in first.dims if _scales(call, dim)]
    untouched = all(mark.untouched for mark in call)
    for dim in sorted(scaling, key=lambda dim: first.shape[dim] // first.size) if untouched else scaling:
        rows = first.shape[dim] // first.size
        if rows == 1 and all(mark.fits(dim, 0) for mark in call):
            return BatchLayout(first.dims.index(dim))
        for length in (0, *(divisor for divisor in range(1, rows) if rows % divisor == 0)):
            if all(mark.fits(dim, length) for mark in call):
                return BatchLayout(first.dims.index(dim), rows, length)
    return BatchLayout(-1) if untouched and not scaling else MIXED


def _scales(call: Sequence[Marked], dim: int) -> bool:
    """Whether the dimension has a fixed number of rows for each example."""
    rows = {divmod(mark.shape[dim], mark.size) for mark in call}
    return len(rows) == 1 and all(count > 0 and rest == 0 for count, rest in rows)


def _marked(example: Example, seen: Seen) -> Marked:
    return Marked(example.size, tuple(seen.x.shape), seen.dims)


def _changed(base: Tensor, other: Tensor) -> Tensor:
    """Where the two differ by more than rounding error, which may depend on the other examples of the batch."""
    if not base.is_floating_point():
        return base != other
    base, other = base.double(), other.double()
    size = base.abs().nan_to_num(0.0, 0.0, 0.0).amax() if base.numel() else 1.0
    both = base.isnan() & other.isnan()
    return ~both & ~((base - other).abs() <= 1e-6 * size) & (base != other)
