"""The prefixes that wrappers put before the names of a model's weights."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

# Names that only wrappers use (torch.compile, FSDP, activation checkpointing): stripped wherever they stand in a name.
ANYWHERE = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
# DataParallel, DDP, AveragedModel. A model may have a `module` of its own: stripped only where every name has it.
LEADING = "module."

_DEEPEST = 20  # parts of a prefix: no module that holds a network is further from the top


def strip(weights: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The weights without wrappers' prefixes, and which prefixes those were, outermost first."""
    kept = {name: value for name, value in weights.items() if name != "n_averaged" or not _all_lead(weights)}
    stripped: list[str] = []
    while True:
        if kept and all(name.startswith(LEADING) for name in kept):
            kept = {name.removeprefix(LEADING): value for name, value in kept.items()}
            stripped.append(LEADING)
        elif (inner := next((part for part in ANYWHERE if any(_holds(name, part) for name in kept)), None)) is not None:
            kept = {_without(name, inner): value for name, value in kept.items()}
            stripped.append(inner)
        else:
            return kept, tuple(dict.fromkeys(stripped))


def common_prefix(names: Collection[str], expected: Collection[str]) -> str:
    """The dotted prefix, such as `net.`, without which names become those that are expected; "" if there is none.

    All names have it, and more fit without it than with it. A module that holds the network as an attribute puts it
    there, as those of Lightning do.
    """
    first = next(iter(names), "")
    fitting = sum(name in expected for name in names)
    for dot in [at for at, char in enumerate(first) if char == "."][:_DEEPEST]:
        prefix = first[: dot + 1]
        if not all(name.startswith(prefix) for name in names):
            return ""
        if sum(name.removeprefix(prefix) in expected for name in names) > fitting:
            return prefix
    return ""


def _all_lead(weights: Mapping[str, Any]) -> bool:
    """AveragedModel has one buffer of its own beside `module.*`."""
    others = [name for name in weights if name != "n_averaged"]
    return bool(others) and all(name.startswith(LEADING) for name in others)


def _holds(name: str, prefix: str) -> bool:
    return name.startswith(prefix) or f".{prefix}" in name


def _without(name: str, prefix: str) -> str:
    return name.removeprefix(prefix).replace(f".{prefix}", ".")
