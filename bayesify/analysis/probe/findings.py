"""What example inputs tell about layers: how often one is called, whether its noise matters, where the examples are."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ...errors import UsageError
from ...nn.batch_arguments import BatchArgument
from ...nn.layer_kinds import weight_names
from ...nn.parametrized_weights import sources
from ...nn.settings import Settings
from ..tracing import TRACING
from .batch_layouts import DATA, BatchLayout
from .example_inputs import Example, ExampleInputs, readings
from .followed_examples import likeliest
from .run import Calls, run, tensors_in, without_traces

_HINT = " (inputs of two batch sizes would tell, if the batch is not their first dimension)"


@dataclass(frozen=True)
class Finding:
    """What example inputs told about one layer.

    Attributes:
        shapes: the shapes of the tensors that its calls multiply.
        moves: by weight, whether noise in it moves the model's output; empty where that cannot be told.
        batch_layout: where the examples are in its calls; None where they could not be followed, or the layer knows.
        problem: why its signs cannot follow the examples, or None.
        outside: where code multiplies by its weight without calling it, or None.
    """

    shapes: tuple[tuple[int, ...], ...]
    moves: Mapping[str, bool] = field(default_factory=dict)
    batch_layout: BatchLayout | None = None
    problem: str | None = None
    outside: str | None = None

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


def findings(
    model: nn.Module, layers: Mapping[str, Settings], given: ExampleInputs
) -> tuple[dict[str, Finding], tuple[BatchArgument, ...]]:
    """What running the model with example inputs tells about these layers, by name, and which arguments hold the batch.

    Leaves the model as it was.

    Raises:
        UsageError: the inputs are not what the model takes, or the model has no weights (is on meta).
    """
    read = readings(given)
    if any(parameter.is_meta for parameter in model.parameters()):
        raise UsageError("the model is on the meta device: example_inputs need its weights")
    if any(map(is_lazy, (*model.parameters(), *model.buffers()))):
        model = copy.deepcopy(model)  # a lazy layer takes its shape from what it sees first
    modules = dict(model.named_modules())
    watched = {place: modules[place] for name in layers for place in (name, _called_as(name, modules))}
    with TRACING, without_traces(model), torch.inference_mode(False):
        calls, moves = _once(model, watched, layers, read[0][0])
        followed = likeliest(model, watched, read)
    hint = _HINT if len(read[0]) == 1 else ""
    by_name = {}
    for name in layers:
        place = _called_as(name, modules)
        shapes = tuple(tuple(seen.x.shape) for seen in calls.of.get(place, ()))
        told = followed.layout(place) if shapes else None
        problem = f"{told}{hint if told is not DATA else ''}" if isinstance(told, str) else None
        layout = told if isinstance(told, BatchLayout) else None
        by_name[name] = Finding(shapes, moves[name], layout, problem, calls.outside.get(place))
    return by_name, followed.arguments


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
    outputs = [tensor for tensor in tensors_in(output) if tensor.requires_grad and tensor.is_floating_point()]
    if not outputs or not weights:
        return {}
    total = torch.stack([(tensor * torch.randn_like(tensor)).sum().float().cpu() for tensor in outputs]).sum()
    try:
        gradients = torch.autograd.grad(total, list(weights), allow_unused=True)
    except RuntimeError:  # the model's own code has no backward: nothing is known
        return {}
    pairs = zip(weights, gradients, strict=True)
    return {id(weight): gradient is not None and bool((gradient != 0).any()) for weight, gradient in pairs}
