"""What example inputs tell of each layer: how often it is called, whether its noise matters, where the examples are."""

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
    """What is known of one layer.

    Attributes:
        shapes: what each of its calls multiplies.
        moves: for each of its weights, whether noise in it moves the model's output; empty where that cannot be told.
        batch_layout: where the examples are in its calls; None where they could not be followed, or it knows itself.
        problem: why its signs cannot follow the examples, if they cannot.
    """

    shapes: tuple[tuple[int, ...], ...]
    moves: Mapping[str, bool] = field(default_factory=dict)
    batch_layout: BatchLayout | None = None
    problem: str | None = None

    def settled(self, settings: Settings) -> Settings:
        """The settings, with the examples where they are."""
        place = self.batch_layout
        return settings if place is None else replace(settings, batch_dim=place.dim, rows=place.rows, run=place.run)

    def notes(self) -> Iterator[str]:
        """One sentence for each thing that is known."""
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
    """What running the model with example inputs tells of these layers, by their names. Leaves no trace.

    Raises:
        UsageError: the inputs are not what the model takes, or the model has no weights (is on meta).
    """
    examples = examples_of(given)
    if any(each.is_meta for each in model.parameters()):
        raise UsageError("the model is on the meta device: example_inputs need its weights")
    if any(is_lazy(each) for each in (*model.parameters(), *model.buffers())):
        model = copy.deepcopy(model)  # a lazy layer takes its shape from what it sees first
    modules = dict(model.named_modules())
    watched = {each: modules[each] for name in layers for each in (name, _called_as(name, modules))}
    with TRACING, without_traces(model), torch.inference_mode(False):
        calls, moves = _once(model, watched, layers, examples[0])
        followed = [marked(model, watched, each) for each in _batches(model, watched, examples)]
    made = {}
    for name in layers:
        place = _called_as(name, modules)
        shapes = tuple(tuple(seen.x.shape) for seen in calls.of.get(place, ()))
        found = _layout(followed, place) if shapes else None
        problem = f"{found}{_HINT if len(examples) == 1 else ''}" if isinstance(found, str) else None
        made[name] = Finding(shapes, moves[name], found if isinstance(found, BatchLayout) else None, problem)
    return made


def _called_as(name: str, modules: Mapping[str, nn.Module]) -> str:
    """An attention's `out_proj`, which it does not call while it is plain, sees the examples as the attention does."""
    parent, _, leaf = name.rpartition(".")
    return parent if leaf == "out_proj" and isinstance(modules[parent], nn.MultiheadAttention) else name


def _once(
    model: nn.Module, watched: Mapping[str, nn.Module], layers: Mapping[str, Settings], example: Example
) -> tuple[Calls, dict[str, dict[str, bool]]]:
    """The calls with the very inputs that were given, and of each layer which weights the output depends on."""
    weights = {
        name: {weight: sources(watched[name], weight) for weight in weight_names(watched[name], settings)}
        for name, settings in layers.items()
    }
    every = [each for found in weights.values() for held in found.values() for each in held]
    flat = [each for each in every if not is_lazy(each) and not each.is_inference()]
    before = [each.requires_grad for each in flat]
    try:
        for each in flat:
            each.requires_grad_(True)
        with torch.enable_grad():
            calls, output = run(model, watched, example)
        known = _depends(output, flat)
    finally:
        for each, value in zip(flat, before, strict=True):
            each.requires_grad_(value)
    moves = {
        name: {weight: any(known.get(id(each), True) for each in held) for weight, held in found.items() if known}
        for name, found in weights.items()
    }
    return calls, moves


def _depends(output: Any, weights: Sequence[Tensor]) -> dict[int, bool]:
    """Whether each weight has a gradient from a random projection of the output; empty where there is no gradient."""
    outputs = [each for each in _tensors(output) if each.requires_grad and each.is_floating_point()]
    if not outputs or not weights:
        return {}
    total = torch.stack([(each * torch.randn_like(each)).sum().float().cpu() for each in outputs]).sum()
    try:
        gradients = torch.autograd.grad(total, list(weights), allow_unused=True)
    except RuntimeError:  # the model's own code has no backward: nothing is known
        return {}
    pairs = zip(weights, gradients, strict=True)
    return {id(weight): each is not None and bool((each != 0).any()) for weight, each in pairs}


def _tensors(output: Any) -> Iterator[Tensor]:
    for each in pytree.tree_leaves(output):
        if isinstance(each, Tensor):
            yield each
        elif isinstance(each, Mapping):
            yield from _tensors(list(each.values()))
        elif hasattr(each, "__dict__") and not isinstance(each, nn.Module):
            yield from _tensors([value for value in vars(each).values() if isinstance(value, Tensor)])


def _batches(model: nn.Module, watched: Mapping[str, nn.Module], examples: list[Example]) -> list[Example]:
    """Small batches of two sizes that the model takes; else those that were given."""
    small = [examples[0].resized(size) for size in _SIZES]
    try:
        with torch.no_grad():
            for each in small:
                run(model, {}, each)
    except UsageError:
        return [each for each in examples if each.size > 1]
    return small


def _layout(followed: list[dict[str, list[Marked]] | None], name: str) -> BatchLayout | str | None:
    """Where the examples are in every call of the layer, or why that is not one place."""
    if not followed or any(each is None for each in followed):
        return None
    calls = [each.get(name, []) for each in followed if each is not None]
    if len({len(each) for each in calls}) != 1:
        return "it is called more often for more examples"
    found = [batch_layout_of(each) for each in zip(*calls, strict=True)]
    if not found or found[0] is None or len(set(found)) == 1:
        return found[0] if found else None
    problem = next((each for each in found if isinstance(each, str)), None)
    return problem or "its calls have the examples in different places"
