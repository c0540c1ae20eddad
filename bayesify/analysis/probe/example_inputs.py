"""Example inputs of a model: where their batch is, and copies with another batch size or other values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ...errors import UsageError

ExampleInputs = Tensor | tuple[Any, ...] | Mapping[str, Any] | list[Any]


@dataclass(frozen=True)
class Example:
    """The inputs of one call of a model.

    Attributes:
        leaves: all values, nested ones too.
        dims: for each leaf, the dimension that holds the batch; None for a leaf without a batch.
        spec: how the leaves nest.
    """

    leaves: tuple[Any, ...]
    dims: tuple[int | None, ...]
    spec: Any

    @property
    def first(self) -> tuple[Tensor, int]:
        """The first tensor that holds the batch, and the dimension."""
        return next((leaf, dim) for leaf, dim in zip(self.leaves, self.dims, strict=True) if dim is not None)

    @property
    def size(self) -> int:
        """How many examples there are in the batch."""
        leaf, dim = self.first
        return leaf.shape[dim]

    def call(self, function: Callable[..., Any]) -> Any:
        """The function's output for these inputs."""
        args, kwargs = pytree.tree_unflatten(list(self.leaves), self.spec)
        return function(*args, **kwargs)

    def resized(self, size: int) -> Example:
        """A batch of this size; examples repeat where there are too few."""
        return self._with(lambda leaf, dim: leaf.index_select(dim, torch.arange(size, device=leaf.device) % self.size))

    def marked(self, index: int) -> Example:
        """The same batch with one example changed, to values of the same kind."""
        changed = self._with(lambda leaf, dim: _changed_at(leaf, dim, index))
        return changed if self.has_contrast else self._with(lambda leaf, dim: _changed_at(leaf, dim, index, force=True))

    @property
    def has_contrast(self) -> bool:
        """Whether any leaf of the batch could be changed to values of its own."""
        pairs = zip(self.leaves, self.dims, strict=True)
        return any(dim is not None and (leaf.is_floating_point() or _varied(leaf)) for leaf, dim in pairs)

    def _with(self, change: Callable[[Tensor, int], Tensor]) -> Example:
        pairs = zip(self.leaves, self.dims, strict=True)
        return replace(self, leaves=tuple(leaf if dim is None else change(leaf, dim) for leaf, dim in pairs))


def examples_of(given: ExampleInputs) -> list[Example]:
    """The given calls, one or two. The batch is the dimension where two calls differ, else the first dimension.

    Raises:
        UsageError: no tensors, or two calls that differ in more than one dimension of a tensor, or in none.
    """
    calls = given if isinstance(given, list) else [given]
    if not 1 <= len(calls) <= 2:
        raise UsageError(f"example_inputs is a list of {len(calls)}: give one input, or two of different batch sizes")
    flat = [pytree.tree_flatten(_call(call)) for call in calls]
    if not any(isinstance(leaf, Tensor) for leaf in flat[0][0]):
        raise UsageError("example_inputs holds no tensor: give what the model is called with")
    dims = _leading(flat[0][0]) if len(flat) == 1 else _differing(*(leaves for leaves, _ in flat))
    return [Example(tuple(leaves), dims, spec) for leaves, spec in flat]


def _call(given: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(given, Tensor):
        return (given,), {}
    if isinstance(given, Mapping):
        return (), dict(given)
    if isinstance(given, tuple):
        return given, {}
    kind = type(given).__name__
    forms = "a tensor, a tuple of arguments, a dict of keywords, or a list of two of those"
    raise UsageError(f"example_inputs is {forms}; not {kind}")


def _leading(leaves: Sequence[Any]) -> tuple[int | None, ...]:
    size = next((leaf.shape[0] for leaf in leaves if isinstance(leaf, Tensor) and leaf.dim()), None)
    if not size:
        raise UsageError("example_inputs has no batch: give at least one example, along the tensors' first dimension")
    return tuple(0 if isinstance(leaf, Tensor) and leaf.dim() and leaf.shape[0] == size else None for leaf in leaves)


def _differing(first: Sequence[Any], second: Sequence[Any]) -> tuple[int | None, ...]:
    problem = "the two example_inputs must be alike in all but the size of the batch"
    if len(first) != len(second):
        raise UsageError(f"{problem}: one has {len(first)} values and the other {len(second)}")
    dims: list[int | None] = []
    for one, other in zip(first, second, strict=True):
        if not isinstance(one, Tensor) or not isinstance(other, Tensor):
            dims.append(None)
            continue
        differing = [dim for dim, (a, b) in enumerate(zip(one.shape, other.shape, strict=False)) if a != b]
        if one.dim() != other.dim() or len(differing) > 1:
            raise UsageError(f"{problem}: shapes {tuple(one.shape)} and {tuple(other.shape)} differ in more")
        dims.append(differing[0] if differing else None)
    places = zip(first, second, dims, strict=True)
    sizes = {(one.shape[dim], other.shape[dim]) for one, other, dim in places if dim is not None}
    if len(sizes) != 1:
        raise UsageError(f"{problem}: {'they differ in none' if not sizes else f'sizes {sorted(sizes)}'}")
    return tuple(dims)


def _varied(leaf: Tensor) -> bool:
    return leaf.dtype is not torch.bool and not leaf.is_floating_point() and bool((leaf != leaf.flatten()[0]).any())


def _changed_at(leaf: Tensor, dim: int, index: int, force: bool = False) -> Tensor:
    """The tensor with other values at one example. Masks stay as they are: one value more may be infinite."""
    here = leaf.narrow(dim, index, 1)
    if leaf.is_floating_point() or leaf.is_complex():
        scale = 0.25 * here.abs() + (0.1 if not leaf.any() else 0.0)
        other = torch.where(here.isfinite(), here + scale * (0.5 + 0.5 * torch.rand_like(here)), here)
    elif _varied(leaf):
        known: Tensor = leaf.unique()  # type: ignore[no-untyped-call]
        step = torch.randint(1, len(known), here.shape, device=leaf.device)
        other = known[(torch.searchsorted(known, here.contiguous()) + step) % len(known)]
    elif force and leaf.dtype is not torch.bool:
        other = torch.where(here == 0, 1, 0).to(leaf.dtype)  # ids that any table of two rows or more has
    else:
        return leaf
    return leaf.slice_scatter(other, dim, index, index + 1)
