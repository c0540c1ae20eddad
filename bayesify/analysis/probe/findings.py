"""What example inputs tell about layers: how often one is called, whether its noise matters, where the examples are."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils import _pytree as pytree

from ...errors import UsageError
from ...nn.layer_kinds import weight_names
from ...nn.parametrized_weights import sources
from ...nn.settings import Settings
from ..tracing import TRACING
from .batch_layouts import BatchLayout, Marked, batch_layout_of, marked
from .example_inputs import Example, ExampleInputs, examples_of
from .run import Calls, run, without_traces

_SIZES = 2, 3  # of the batches in which examples are followed
_HINT = " (inputs of two batch sizes would tell, if the batch is not their first dimension)"


@dataclass(frozen=True)
class Finding:
    """What example inputs told about one layer.

    Attributes:
        shapes: the shapes of the tensors that its calls multiply.
        moves: by weight, whether noise in it moves the model's output; empty where that cannot be told.
        batch_layout: where the examples are in its calls; None where they could not be followed, or the layer knows.
        problem: why its signs cannot follow the examples, or None.
    """

    shapes: tuple[tuple[int, ...], ...]
    moves: Mapping[str, bool] = field(default_factory=dict)
    batch_layout: BatchLayout | None = None
    problem: str | None = None

    def settled(self, settings: Settings) -> Settings:
        """The settings with the place of the examples filled in."""
        place = self.batch_layout
        return settings if place is None else replace(settings, batch_dim=place.dim, rows=place.rows, run=place.run)

    def notes(self) -> Iterator[str]:
        """What is known, one sentence at a time."""
        if not self.shapes and not any(self.moves.values()):
            yield "never called with these inputs"
            return
        if self.shapes:
            times = "once" if len(self.shapes) == 1 else f"{len(self.shapes)} times"
            shapes = list(dict.fromkeys(self.shapes))
            yield f"called {times}, {', '.join(map(str, shapes[:3]))}{', ...' if len(shapes) > 3 else ''}"
        unmoved = [weight for weight, moves in self.moves.items() if not moves]
        if unmoved:
            yield f"noise in {'it' if len(unmoved) == len(self.moves) else ', '.join(unmoved)} does not move the output"


def examples_dim(given: ExampleInputs) -> int:
    """Which dimension of the model's own inputs holds the batch."""
    return examples_of(given)[0].first[1]


def findings(model: nn.Module, layers: Mapping[str, Settings], given: ExampleInputs) -> dict[str, Finding]:
    """What running the model with example inputs tells about these layers, by name. Leaves the model as it was.

    Raises:
        UsageError: the inputs are not what the model takes, or the model has no weights (is on meta).
    """
    examples = examples_of(given)
    if any(parameter.is_meta for parameter in model.parameters()):
        raise UsageError("the model is on the meta device: example_inputs need its weights")
    if any(map(is_lazy, (*model.parameters(), *model.buffers()))):
        model = copy.deepcopy(model)  # a lazy layer takes its shape from what it sees first
    modules = dict(model.named_modules())
    watched = {place: modules[place] for name in layers for place in (name, _called_as(name, modules))}
    with TRACING, without_traces(model), torch.inference_mode(False):
        calls, moves = _once(model, watched, layers, examples[0])
        followed = [marked(model, watched, batch) for batch in _batches(model, watched, examples)]
    by_name = {}
    for name in layers:
        place = _called_as(name, modules)
        shapes = tuple(tuple(seen.x.shape) for seen in calls.of.get(place, ()))
        told = _layout(followed, place) if shapes else None
        problem = f"{told}{_HINT if len(examples) == 1 else ''}" if isinstance(told, str) else None
        by_name[name] = Finding(shapes, moves[name], told if isinstance(told, BatchLayout) else None, problem)
    return by_name


def _called_as(name: str, modules: Mapping[str, nn.Module]) -> str:
    """The layer whose calls are watched: for an `out_proj` its attention, which does not call it while it is plain."""
    parent, _, leaf = name.rpartition(".")
    return parent if leaf == "out_proj" and isinstance(modules[parent], nn.MultiheadAttention) else name


def _once(
    model: nn.Module, watched: Mapping[str, nn.Module], layers: Mapping[str, Settings], example: Example
) -> tuple[Calls, dict[str, dict[str, bool]]]:
    """The calls with the inputs as they were given, and for each layer which of its weights move the output."""
    weights = {
        name: {weight: sources(watched[name], weight) for weight in weight_names(watched[name], settings)}
        for name, settings in layers.items()
    }
    every = [tensor for of_layer in weights.values() for tensors in of_layer.values() for tensor in tensors]
    flat = [tensor for tensor in every if not is_lazy(tensor) and not tensor.is_inference()]
    before = [tensor.requires_grad for tensor in flat]
    try:
        for tensor in flat:
            tensor.requires_grad_(True)
        with torch.enable_grad():
            calls, output = run(model, watched, example)
        known = _depends(output, flat)
    finally:
        for tensor, value in zip(flat, before, strict=True):
            tensor.requires_grad_(value)
    moves = {
        name: {weight: any(known.get(id(tensor), True) for tensor in own) for weight, own in of_layer.items() if known}
        for name, of_layer in weights.items()
    }
    return calls, moves


def _depends(output: Any, weights: Sequence[Tensor]) -> dict[int, bool]:
    """By id, whether a weight gets gradient from a random projection of the output; empty without a backward."""
    outputs = [tensor for tensor in _tensors(output) if tensor.requires_grad and tensor.is_floating_point()]
    if not outputs or not weights:
        return {}
    total = torch.stack([(tensor * torch.randn_like(tensor)).sum().float().cpu() for tensor in outputs]).sum()
    try:
        gradients = torch.autograd.grad(total, list(weights), allow_unused=True)
    except RuntimeError:  # the model's own code has no backward: nothing is known
        return {}
    pairs = zip(weights, gradients, strict=True)
    return {id(weight): gradient is not None and bool((gradient != 0).any()) for weight, gradient in pairs}


def _tensors(output: Any) -> Iterator[Tensor]:
    for leaf in pytree.tree_leaves(output):
        if isinstance(leaf, Tensor):
            yield leaf
        elif isinstance(leaf, Mapping):
            yield from _tensors(list(leaf.values()))
        elif hasattr(leaf, "__dict__") and not isinstance(leaf, nn.Module):
            yield from _tensors([value for value in vars(leaf).values() if isinstance(value, Tensor)])


def _batches(model: nn.Module, watched: Mapping[str, nn.Module], examples: list[Example]) -> list[Example]:
    """Small batches of two sizes that the model takes; else those that were given."""
    small = [examples[0].resized(size) for size in _SIZES]
    try:
        with torch.no_grad():
            for batch in small:
                run(model, {}, batch)
    except UsageError:
        return [batch for batch in examples if batch.size > 1]
    return small


def _layout(followed: list[dict[str, list[Marked]] | None], name: str) -> BatchLayout | str | None:
    """Where the examples are in every call of the layer, or why that is not one place."""
    if not followed or None in followed:
        return None
    calls = [by_layer.get(name, []) for by_layer in followed if by_layer is not None]
    if len(set(map(len, calls))) != 1:
        return "it is called more often for more examples"
    places = [batch_layout_of(call) for call in zip(*calls, strict=True)]
    if not places or places[0] is None or len(set(places)) == 1:
        return places[0] if places else None
    problem = next((place for place in places if isinstance(place, str)), None)
    return problem or "its calls have the examples in different places"
