"""The names that saved files hold for classes and functions of bayesify: pinned, so that code may move.

A pickle names a class by its `__module__`. Here each one that a saved file may name gets that of a public package,
which has it under its own name; in which file of the package it is written, no saved file tells.
"""

from __future__ import annotations

import inspect
from importlib import import_module
from typing import Any

from ...nn import __all__ as layers

# The package and what it has, as text: a room above this one is named too, and is imported only by `pinned`.
PINNED: dict[str, tuple[str, ...]] = {
    "bayesify.nn": (
        *layers, "FlipoutOutProjection", "LRTOutProjection", "Ledger", "LazyBuffer",
        "mark_reached", "keep_unfused", "tell_examples", "forget_examples",
        "begin_watch", "end_watch",
    ),
    "bayesify.distributions": ("Posterior", "Scale", "Normal", "LogUniform", "ScaleMixture"),
    "bayesify.programs": (
        "rebuilt", "again", "Holder", "Part", "FlipoutPart", "LRTPart", "Step", "Ref",
        "hide_root_products", "find_root_products", "check_inputs", "check_kernel",
    ),
    "bayesify.uncertainty": ("Calibration", "Conformal", "Scores"),
}  # fmt: skip
PINNED_NAMES = frozenset(f"{package}.{name}" for package, names in PINNED.items() for name in names)


def pinned() -> dict[str, Any]:
    """Give every listed class and function its pinned name. Returns them, by that name."""
    things = {}
    for package, names in PINNED.items():
        for name in names:
            things[f"{package}.{name}"] = thing = getattr(import_module(package), name)
            if isinstance(thing, type):  # typing.get_type_hints would look its annotations up in the package
                thing.__annotations__ = inspect.get_annotations(thing, eval_str=True)
            thing.__module__ = package
    return things
