"""Which arguments of a model hold the examples of its batch, as plain data that the model keeps and pickles."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

Key = str | int
# Where in (args, kwargs) the tensor or list is, key by key, and the dimension that holds the examples (0 for a list).
BatchArgument = tuple[tuple[Key, ...], int]


def named(arguments: Sequence[BatchArgument], forward: Callable[..., Any]) -> tuple[BatchArgument, ...]:
    """The same arguments, each by every way that a call can hand it over: by its position, and by its name."""
    try:
        parameters = list(inspect.signature(forward).parameters.values())
    except (TypeError, ValueError):
        return tuple(arguments)
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    names = [parameter.name for parameter in parameters if parameter.kind in kinds]
    ways: list[BatchArgument] = []
    for (side, at, *inner), dim in arguments:
        ways.append(((side, at, *inner), dim))
        if side == 0 and isinstance(at, int) and at < len(names):
            ways.append(((1, names[at], *inner), dim))
        elif side == 1 and at in names:
            ways.append(((0, names.index(str(at)), *inner), dim))
    return tuple(dict.fromkeys(ways))


def examples_in(args: Any, kwargs: Any, arguments: Sequence[BatchArgument]) -> int:
    """How many examples a call has, by the first of these arguments that it was given; 0 where it has none of them."""
    for path, dim in arguments:
        value = (args, kwargs)
        for key in path:
            value = _entry(value, key)
        if isinstance(value, Tensor):
            if value.dim() > dim:
                return value.shape[dim]
        elif isinstance(value, list | tuple):
            return len(value)
    return 0


def _entry(value: Any, key: Key) -> Any:
    """What a container has under this key; None where it has nothing there."""
    if isinstance(value, list | tuple):
        return value[key] if isinstance(key, int) and key < len(value) else None
    if isinstance(value, Mapping):
        return value.get(key)
    return getattr(value, key, None) if isinstance(key, str) and value is not None else None
