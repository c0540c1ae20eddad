"""Example inputs of a model: where their batch is, and copies with another batch size or other values."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import FunctionType, ModuleType
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from ...errors import UsageError
from ...nn.batch_arguments import BatchArgument, Key

ExampleInputs = Tensor | tuple[Any, ...] | Mapping[str, Any] | list[Any]

OtherData = Literal["all", "integers", "floats", "halves"]
OTHER_DATA: tuple[OtherData, ...] = "all", "integers", "floats", "halves"  # a model may refuse some of these

_NESTED = (
    "example_inputs holds its examples in a nested tensor or a PackedSequence, in which none can be followed: plan and "
    "convert without example_inputs, by which each row of a layer counts as an example"
)
_DEPTH = 5  # of containers in containers
_OPAQUE = (nn.Module, type, FunctionType, ModuleType, weakref.ReferenceType, torch.Generator, PackedSequence)


@dataclass(frozen=True)
class Leaf:
    """A value somewhere in the inputs: a tensor, or a list with one entry for each example."""

    path: tuple[Key, ...]
    value: Any

    def size(self, dim: int) -> int:
        """How many examples it holds, if it holds them along `dim`."""
        return self.value.shape[dim] if isinstance(self.value, Tensor) else len(self.value)


@dataclass(frozen=True)
class Example:
    """The inputs of one call of a model.

    Attributes:
        inputs: the positional arguments and the keywords.
        leaves: the tensors in them, and the lists that hold the batch.
        dims: for each leaf, the dimension that holds the batch (0 for a list); None for a leaf without a batch.
    """

    inputs: tuple[tuple[Any, ...], dict[str, Any]]
    leaves: tuple[Leaf, ...]
    dims: tuple[int | None, ...]

    @property
    def size(self) -> int:
        """How many examples there are in the batch."""
        return next(leaf.size(dim) for leaf, dim in zip(self.leaves, self.dims, strict=True) if dim is not None)

    def batch_arguments(self) -> tuple[BatchArgument, ...]:
        """Where a call of the model has the batch."""
        pairs = zip(self.leaves, self.dims, strict=True)
        return tuple((leaf.path, dim) for leaf, dim in pairs if dim is not None)

    def call(self, function: Callable[..., Any]) -> Any:
        """The function's output for these inputs."""
        args, kwargs = self.inputs
        return function(*args, **kwargs)

    def resized(self, size: int) -> Example:
        """A batch of this size; examples repeat where there are too few."""
        places = [index % self.size for index in range(size)]
        return self._with(lambda value, dim: value if dim is None else _selected(value, dim, places))

    def marked(self, index: int) -> Example:
        """The same batch with one example changed, to values of the same kind."""
        force = not self.has_contrast
        return self._with(lambda value, dim: value if dim is None else _changed_at(value, dim, index, force))

    def exchanged(self, index: int) -> Example:
        """The same batch with one example changed to the next one, whose values the model takes."""
        places = [*range(index), (index + 1) % self.size, *range(index + 1, self.size)]
        return self._with(lambda value, dim: value if dim is None else _selected(value, dim, places))

    def with_other(self, data: OtherData) -> Example:
        """The same shapes with other values; integers and masks only grow smaller, so that ids stay ids."""
        return self._with(lambda value, dim: _each_tensor(value, lambda leaf: _other(leaf, data)))

    @property
    def has_contrast(self) -> bool:
        """Whether any leaf of the batch could be changed to values of its own."""
        pairs = zip(self.leaves, self.dims, strict=True)
        tensors = [tensor for leaf, dim in pairs if dim is not None for tensor in _tensors(leaf.value)]
        return any(tensor.is_floating_point() or tensor.is_complex() or _varied(tensor) for tensor in tensors)

    def _with(self, change: Callable[[Any, int | None], Any]) -> Example:
        pairs = zip(self.leaves, self.dims, strict=True)
        leaves = tuple(replace(leaf, value=change(leaf.value, dim)) for leaf, dim in pairs)
        known = {id(leaf.value): new.value for leaf, new in zip(self.leaves, leaves, strict=True)}
        kept = {id(tensor): tensor for tensor in _tensors(self.inputs)}
        return replace(self, inputs=copy.deepcopy(self.inputs, kept | known), leaves=leaves)


def readings(given: ExampleInputs) -> list[list[Example]]:
    """What the given calls, one or two, may mean: each time where the batch is in all of them, the likeliest first.

    Of two calls the batch is where they differ. Of one it is the first dimension of some of the tensors, or a list.

    Raises:
        UsageError: no tensors, or two calls that differ in more than one dimension of a tensor, or in none.
    """
    calls = given if isinstance(given, list) else [given]
    if not 1 <= len(calls) <= 2:
        raise UsageError(f"example_inputs is a list of {len(calls)}: give one input, or two of different batch sizes")
    inputs = [_call(call) for call in calls]
    if not any(True for _ in _leaves(inputs[0], ())):
        none = "example_inputs holds no tensor: give what the model is called with"
        raise UsageError(_NESTED if _nests(inputs[0]) else none)
    if len(inputs) == 1:
        return [[example] for example in _readings(inputs[0])]
    flat = [tuple(_leaves(call, ())) for call in inputs]
    if [leaf.path for leaf in flat[0]] != [leaf.path for leaf in flat[1]]:
        flat = [tuple(_leaves(call, (), lists=True)) for call in inputs]
    dims = _differing(*flat)
    return [[Example(call, leaves, dims) for call, leaves in zip(inputs, flat, strict=True)]]


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


def _readings(inputs: tuple[tuple[Any, ...], dict[str, Any]]) -> Iterator[Example]:
    """The batch in all tensors whose first dimension has one size; in one of these; in a list's entries."""
    flat, seen = tuple(_leaves(inputs, ())), set()
    whole = tuple(_leaves(inputs, (), lists=True))
    sized = [(leaves, [_first_size(leaf) for leaf in leaves]) for leaves in (flat, whole)]
    if not any(size for _, sizes in sized for size in sizes):
        raise UsageError("example_inputs has no batch: give at least one example, along the tensors' first dimension")
    together = [
        (leaves, tuple(0 if own == size else None for own in sizes))
        for leaves, sizes in sized for size in dict.fromkeys(filter(None, sizes))
    ]  # fmt: skip
    alone = [
        (leaves, tuple(0 if other == at else None for other in range(len(dims))))
        for leaves, dims in together for at, dim in enumerate(dims) if dim is not None
    ]  # fmt: skip
    for leaves, dims in (*together, *alone):
        places = tuple(leaf.path for leaf, dim in zip(leaves, dims, strict=True) if dim is not None)
        if places not in seen:
            seen.add(places)
            yield Example(inputs, leaves, dims)


def _first_size(leaf: Leaf) -> int:
    return 0 if isinstance(leaf.value, Tensor) and not leaf.value.dim() else leaf.size(0)


def _leaves(value: Any, path: tuple[Key, ...], lists: bool = False) -> Iterator[Leaf]:
    """The tensors in a value, and where they are; with `lists`, a list of tensors or of dicts is one leaf."""
    if isinstance(value, Tensor) and value.is_nested:
        return
    if isinstance(value, Tensor) or (lists and len(path) > 1 and _may_be_batch(value)):
        yield Leaf(path, value)
    elif len(path) < _DEPTH and not isinstance(value, _OPAQUE):
        for key, inner in _entries(value):
            yield from _leaves(inner, (*path, key), lists)


def _nests(value: Any, depth: int = 0) -> bool:
    """Whether it holds examples of several lengths in a tensor of torch's own for that."""
    if isinstance(value, PackedSequence) or (isinstance(value, Tensor) and value.is_nested):
        return True
    inside = depth < _DEPTH and not isinstance(value, _OPAQUE)
    return inside and any(_nests(inner, depth + 1) for _, inner in _entries(value))


def _entries(value: Any) -> Iterator[tuple[Key, Any]]:
    if isinstance(value, Mapping):
        yield from ((key, inner) for key, inner in value.items() if isinstance(key, str | int))
    elif isinstance(value, list | tuple):
        yield from enumerate(value)
    elif hasattr(value, "__dict__"):
        yield from vars(value).items()


def _may_be_batch(value: Any) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(own, Tensor | Mapping) for own in value)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, PackedSequence):
        yield value.data
    yield from (leaf.value for leaf in _leaves(value, ()))


def _each_tensor(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    return copy.deepcopy(value, {id(tensor): change(tensor) for tensor in _tensors(value)})


def _differing(first: Sequence[Leaf], second: Sequence[Leaf]) -> tuple[int | None, ...]:
    problem = "the two example_inputs must be alike in all but the size of the batch"
    if [leaf.path for leaf in first] != [leaf.path for leaf in second]:
        raise UsageError(f"{problem}: one has {len(first)} values and the other {len(second)}")
    dims = []
    for one, other in ((leaf.value, twin.value) for leaf, twin in zip(first, second, strict=True)):
        if not isinstance(one, Tensor) or not isinstance(other, Tensor):
            dims.append(None if isinstance(one, Tensor) or len(one) == len(other) else 0)
            continue
        differing = [dim for dim, (a, b) in enumerate(zip(one.shape, other.shape, strict=False)) if a != b]
        if one.dim() != other.dim() or len(differing) > 1:
            raise UsageError(f"{problem}: shapes {tuple(one.shape)} and {tuple(other.shape)} differ in more")
        dims.append(differing[0] if differing else None)
    places = zip(first, second, dims, strict=True)
    sizes = {(one.size(dim), other.size(dim)) for one, other, dim in places if dim is not None}
    if len(sizes) != 1:
        raise UsageError(f"{problem}: {'they differ in none' if not sizes else f'sizes {sorted(sizes)}'}")
    return tuple(dims)


def _selected(value: Any, dim: int, places: Sequence[int]) -> Any:
    if isinstance(value, Tensor):
        return value.index_select(dim, torch.tensor(places, device=value.device))
    return type(value)(copy.copy(value[index]) for index in places)


def _other(leaf: Tensor, data: OtherData) -> Tensor:
    if not leaf.numel() or not leaf.dim():
        return leaf
    if leaf.is_floating_point() or leaf.is_complex():
        shuffled = leaf.flatten()[torch.randperm(leaf.numel(), device=leaf.device)].view_as(leaf)
        return -shuffled if data in ("all", "floats") else leaf
    if data == "floats":
        return leaf
    if leaf.dtype is torch.bool:
        first_half = torch.arange(leaf.shape[-1], device=leaf.device) < (leaf.shape[-1] + 1) // 2
        return leaf & (first_half if data == "halves" else torch.rand(leaf.shape, device=leaf.device) < 0.5)
    share = 0.5 if data == "halves" else torch.rand(leaf.shape, device=leaf.device)
    return (leaf * share).floor().to(leaf.dtype).clamp_min(min(1, int(leaf.min())))


def _varied(leaf: Tensor) -> bool:
    return leaf.dtype is not torch.bool and not leaf.is_floating_point() and bool((leaf != leaf.flatten()[0]).any())


def _changed_at(value: Any, dim: int, index: int, force: bool = False) -> Any:
    """The value with one example changed. Masks stay as they are: one value more may be infinite."""
    if not isinstance(value, Tensor):
        changed = _each_tensor(value[index], lambda leaf: _changed(leaf, leaf, force))
        return type(value)((*value[:index], changed, *value[index + 1 :]))
    other = _changed(value, value.narrow(dim, index, 1), force)
    return value.slice_scatter(other, dim, index, index + 1)


def _changed(leaf: Tensor, here: Tensor, force: bool) -> Tensor:
    """Other values for a part of the leaf, of the same kind."""
    if leaf.is_floating_point() or leaf.is_complex():
        scale = 0.25 * here.abs() + (0.1 if not leaf.any() else 0.0)
        return torch.where(here.isfinite(), here + scale * (0.5 + 0.5 * torch.rand_like(here)), here)
    if _varied(leaf):
        known: Tensor = leaf.unique()  # type: ignore[no-untyped-call]
        step = torch.randint(1, len(known), here.shape, device=leaf.device)
        return known[(torch.searchsorted(known, here.contiguous()) + step) % len(known)]
    if force and leaf.dtype is not torch.bool:
        return torch.where(here == 0, 1, 0).to(leaf.dtype)  # ids that any table of two rows or more has
    return here
