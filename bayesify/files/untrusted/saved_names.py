"""The names that saved files hold for classes and functions of bayesify: pinned, so that code may move.

A pickle names a class by its `__module__`. Here each one that a saved file may name gets that of a public package,
which has it under its own name; in which file of the package it is written, no saved file tells.
"""

from __future__ import annotations

from typing import Any

from ... import distributions, nn, programs
from ...nn.registry import plain_classes, variant

_LAYERS = [variant(cls, method) for cls in plain_classes() for method in ("flipout", "lrt")]

PINNED: dict[str, tuple[Any, ...]] = {
    "bayesify.nn": (
        *(layer for layer in _LAYERS if layer is not None and not issubclass(layer, programs.Part)),
        nn.Settings, nn.Ledger, nn.LazyBuffer,
        nn.mark_reached, nn.keep_unfused, nn.tell_examples, nn.forget_examples,
    ),
    "bayesify.distributions": (
        distributions.Posterior, distributions.Scale, distributions.Normal, distributions.LogUniform,
        distributions.ScaleMixture,
    ),
    "bayesify.programs": (
        programs.rebuilt, programs.again, programs.Holder, programs.Part, programs.FlipoutPart, programs.LRTPart,
        programs.Step, programs.Ref, programs.hide_root_products, programs.find_root_products, programs.check_inputs,
    ),
}  # fmt: skip

PINNED_NAMES = frozenset(f"{package}.{thing.__qualname__}" for package, things in PINNED.items() for thing in things)

for _package, _things in PINNED.items():
    for _thing in _things:
        _thing.__module__ = _package

# What `torch.load(weights_only=True)` may build. `again` makes the class of a graph, from the graph's code: not that.
BUILT_BY_TORCH = [thing for things in PINNED.values() for thing in things if thing is not programs.again]
