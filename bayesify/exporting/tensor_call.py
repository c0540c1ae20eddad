"""A call of a model as the tensors in it: what an exported file takes, by name, and where each has the batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..analysis.probe.example_inputs import Example, ExampleInputs, readings
from ..errors import UsageError
from ..escaping import first_line
from ..nn.folded_batches import watched_arguments
from ..nn.posterior_mean import posterior_mean
from ..uncertainty.calls import forward_parameters

_FIXED = "export with dynamic_batch=False (--fixed-batch), for batches of just this size"


@dataclass(frozen=True)
class TensorCall:
    """One call of a model.

    Attributes:
        names: of the tensors, as the file has them.
        tensors: in the order of the call, those by keyword last.
        dims: for each tensor, the dimension that holds the batch; None where it has none, or where the batch is fixed.
        keywords: how many of the tensors, the last ones, are handed over by keyword.
        leaves, structure: the whole call, flattened, the tensors among its leaves at `places`.
    """

    names: tuple[str, ...]
    tensors: tuple[Tensor, ...]
    dims: tuple[int | None, ...]
    keywords: int
    leaves: tuple[Any, ...]
    places: tuple[int, ...]
    structure: pytree.TreeSpec

    def arguments(self, tensors: Sequence[Tensor]) -> Any:
        """(args, kwargs) of the model for these tensors in the place of the example's."""
        leaves = list(self.leaves)
        for place, tensor in zip(self.places, tensors, strict=True):
            leaves[place] = tensor
        return pytree.tree_unflatten(leaves, self.structure)

    @property
    def is_dynamic(self) -> bool:
        """Whether the size of the batch is left open."""
        return any(dim is not None for dim in self.dims)

    def resized(self, size: int) -> tuple[Tensor, ...]:
        """The tensors of a batch of this size; examples repeat where there are too few."""

        def of(tensor: Tensor, dim: int | None) -> Tensor:
            if dim is None:
                return tensor
            return tensor.index_select(dim, torch.arange(size, device=tensor.device) % tensor.shape[dim])

        return tuple(map(of, self.tensors, self.dims))


def tensor_call(model: nn.Module, example_inputs: ExampleInputs, *, dynamic_batch: bool) -> TensorCall:
    """The call for inputs as `convert` takes them; with a dynamic batch, where each of its tensors has it.

    Raises:
        UsageError: the model fails with these inputs, or with a batch of another size; tensors where no file has them.
    """
    found = [calls[0] for calls in readings(example_inputs)]
    _run(model, found[0])
    example = _resizable(model, found) if dynamic_batch else found[0]
    given, structure = pytree.tree_flatten_with_path(example.inputs)
    keyed: list[tuple[Any, Any]] = list(given)
    places = tuple(place for place, (_, leaf) in enumerate(keyed) if isinstance(leaf, Tensor))
    tensors = tuple(keyed[place][1] for place in places)
    dims = {id(leaf.value): dim for leaf, dim in zip(example.leaves, example.dims, strict=True)}
    _refuse_hidden(example, tensors)
    return TensorCall(
        names=_names(model, [keyed[place][0] for place in places]),
        tensors=tensors,
        dims=tuple(dims.get(id(tensor)) if dynamic_batch else None for tensor in tensors),
        keywords=sum(keyed[place][0][0].idx == 1 for place in places),
        leaves=tuple(leaf for _, leaf in keyed),
        places=places,
        structure=structure,
    )


def at_least_two(call: TensorCall) -> TensorCall:
    """The call with two examples at least: torch.export takes a size of one for a fixed one."""
    sizes = [tensor.shape[dim] for tensor, dim in zip(call.tensors, call.dims, strict=True) if dim is not None]
    return replace(call, tensors=call.resized(2)) if sizes and min(sizes) < 2 else call


def _resizable(model: nn.Module, found: list[Example]) -> Example:
    """Of all that the inputs may mean, that which the model takes in another size of the batch."""
    own = dict(watched_arguments(model))
    known = [example for example in found if own and own.items() >= dict(example.batch_arguments()).items()]
    for example in known or found:
        if any(dim is not None and not isinstance(leaf.value, Tensor) for leaf, dim in _pairs(example)):
            continue
        try:
            _run(model, example.resized(example.size + 1))
        except UsageError:
            continue
        return example
    raise UsageError(
        f"{type(model).__name__} does not take a batch of another size than that of example_inputs, along the first "
        f"dimension; give two inputs of different batch sizes, [inputs, inputs], or {_FIXED}"
    )


def _pairs(example: Example) -> Any:
    return zip(example.leaves, example.dims, strict=True)


def _run(model: nn.Module, example: Example) -> None:
    try:
        with torch.no_grad(), posterior_mean(model):
            example.call(model)
    except Exception as error:
        raise UsageError(
            f"{type(model).__name__} fails with these example_inputs: {type(error).__name__}: {first_line(error)}"
        ) from error


def _refuse_hidden(example: Example, tensors: tuple[Tensor, ...]) -> None:
    """A tensor in an object that torch cannot take apart would become a constant of the file."""
    known = {id(tensor) for tensor in tensors}
    for leaf in example.leaves:
        if isinstance(leaf.value, Tensor) and id(leaf.value) not in known:
            raise UsageError(
                f"the input {'.'.join(map(str, leaf.path[1:]))} stands inside an object, where no file has inputs: "
                "wrap the model in a module whose forward takes tensors, and export that"
            )


def _names(model: nn.Module, paths: list[Any]) -> tuple[str, ...]:
    """Each tensor's name: its argument's, and where it is in there."""
    parameters = forward_parameters(model).values()
    by_place = [own.name for own in parameters if own.kind in (own.POSITIONAL_ONLY, own.POSITIONAL_OR_KEYWORD)]
    names: list[str] = []
    for side, at, *inner in paths:
        keys = [str(getattr(key, "key", getattr(key, "idx", key))) for key in (at, *inner)]
        if side.idx == 0:
            keys[0] = by_place[at.idx] if at.idx < len(by_place) else f"input_{at.idx}"
        names.append(as_name("_".join(keys)))
    return tuple(names)


def as_name(text: str) -> str:
    """The text as an identifier, which every runtime takes for a name."""
    return "".join(char if char.isalnum() or char == "_" else "_" for char in text)
