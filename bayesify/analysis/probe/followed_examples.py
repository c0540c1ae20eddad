"""The examples of a batch, followed through a model: which arguments hold them, and where its layers have them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from ...errors import UsageError
from ...nn.batch_arguments import BatchArgument
from .batch_layouts import DATA, BatchLayout, Marked, batch_layout_of, marked
from .example_inputs import OTHER_DATA, Example
from .run import OUTPUT, Calls, run

_SIZES = 2, 3  # of the batches in which examples are followed
_UNFOUND = "no argument was found to hold the batch"


@dataclass(frozen=True)
class Followed:
    """What one reading of the example inputs told.

    Attributes:
        arguments: which of the model's arguments hold the batch.
        marks: the calls of the layers, by name, in batches of one or two sizes; empty where no example shows anywhere.
        fixed: whether the model takes no other size of the batch than the one that was given.
        varying: the layers whose number of rows other data of the same shape change.
    """

    arguments: tuple[BatchArgument, ...]
    marks: tuple[Mapping[str, list[Marked]], ...]
    fixed: bool
    varying: frozenset[str]

    def layout(self, name: str) -> BatchLayout | str | None:
        """Where the examples are in every call of the layer, or why that is not one place; None if the layer knows."""
        if name in self.varying:
            return DATA
        if not self.marks:
            return _UNFOUND
        calls = [by_layer.get(name, []) for by_layer in self.marks]
        if len(set(map(len, calls))) != 1:
            return "it is called more often for more examples"
        places = [batch_layout_of(call) for call in zip(*calls, strict=True)]
        if not places or places[0] is None or len(set(places)) == 1:
            return places[0] if places else None
        problem = next((place for place in places if isinstance(place, str)), None)
        return problem or "its calls have the examples in different places"

    def doubts(self) -> tuple[bool, bool, int, int]:
        """What speaks against this reading, the gravest first; all false where nothing does."""
        layouts = [self.layout(name) for name in set().union(*self.marks) - {OUTPUT}]
        leads = self.layout(OUTPUT)
        problems = sum(isinstance(layout, str) for layout in layouts)
        shared = sum(isinstance(layout, BatchLayout) and layout.dim < 0 for layout in layouts)
        return self.fixed or not self.marks, not isinstance(leads, BatchLayout) or leads.dim != 0, problems, shared


def likeliest(model: nn.Module, layers: Mapping[str, nn.Module], read: Sequence[Sequence[Example]]) -> Followed:
    """The reading against which least speaks; the first, where several are alike."""
    varying, best = _varying(model, layers, read[0][0]), None
    for examples in read:
        followed = _followed(model, layers, examples, varying)
        if best is None or followed.doubts() < best.doubts():
            best = followed
        if not any(best.doubts()):
            break
    assert best is not None
    return best


def _followed(
    model: nn.Module, layers: Mapping[str, nn.Module], examples: Sequence[Example], varying: frozenset[str]
) -> Followed:
    batches = [examples[0].resized(size) for size in _SIZES]
    fixed = not all(_takes(model, batch) for batch in batches)
    batches = [batch for batch in examples if batch.size > 1] if fixed else batches
    marks = [marked(model, layers, batch) for batch in batches]
    known = () if None in marks else tuple(by_layer for by_layer in marks if by_layer is not None)
    return Followed(examples[0].batch_arguments(), known, fixed, varying)


def _takes(model: nn.Module, batch: Example) -> bool:
    try:
        with torch.no_grad():
            run(model, {}, batch)
    except UsageError:
        return False
    return True


def _varying(model: nn.Module, layers: Mapping[str, nn.Module], example: Example) -> frozenset[str]:
    """The layers that see another number of rows where the inputs have other values in the same shapes."""
    with torch.no_grad():
        base, _ = run(model, layers, example)
        varying: set[str] = set()
        for kind in OTHER_DATA:
            try:
                other, _ = run(model, layers, example.with_other(kind))
            except UsageError:  # the model's own checks of its inputs: these tell nothing
                continue
            varying.update(name for name in base.of if _differ(base, other, name))
    return frozenset(varying)


def _differ(base: Calls, other: Calls, name: str) -> bool:
    """Whether any call of the layer has another shape, up to where one run called it less often."""
    calls = zip(base.of[name], other.of.get(name, ()), strict=False)
    return any(before.x.shape != after.x.shape for before, after in calls)
