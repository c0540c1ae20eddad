"""bayesify's own records in a file: every field is there, is of its type, and there are no others."""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from typing import Any, Literal

from torch import nn

from ...errors import FileRefusedError
from ...nn.kl import Ledger
from .content import SHORT


def wrong_field(record: Any) -> str | None:
    """The first field of a dataclass that is not of its declared type, None if all are."""
    cls: Any = type(record)
    hints = _hints(cls)
    return next((name for name, hint in hints.items() if not matches(getattr(record, name), hint)), None)


def refuse_wrong_record(made: Any) -> None:
    """Refuse one of bayesify's own records that its constructor would not make.

    Raises:
        FileRefusedError: a field is missing, unknown or of another type.
    """
    cls = type(made)
    if isinstance(made, Ledger):
        right = {"root"} <= set(vars(made)) <= {"root", "layers"} and isinstance(made.root, nn.Module)
        right = right and matches(made.layers, tuple[nn.Module, ...])
        hints: dict[str, Any] = {}
    elif dataclasses.is_dataclass(cls) and cls.__module__.startswith("bayesify."):
        hints = _hints(cls)
        right = set(vars(made)) <= set(hints) and all(hasattr(made, name) for name in hints)
    else:
        return
    wrong = wrong_field(made) if right and hints else None
    if not right or wrong:
        raise FileRefusedError(f"has a {cls.__name__} with wrong fields{f': {wrong}' if wrong else ''}; {SHORT}")


def matches(value: Any, hint: Any) -> bool:
    """Whether a value is of a type: of numbers, texts, None, classes, and containers and choices of those."""
    if hint is Any:
        return True
    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    if origin is dict:
        key, part = inside
        return isinstance(value, dict) and all(matches(k, key) and matches(v, part) for k, v in value.items())
    if origin is list:
        return isinstance(value, list) and all(matches(item, inside[0]) for item in value)
    if origin is Literal:
        return any(type(value) is type(word) and value == word for word in inside)
    if origin in (typing.Union, types.UnionType):
        return any(matches(value, part) for part in inside)
    if origin is tuple:
        if len(inside) == 2 and inside[1] is Ellipsis:
            return isinstance(value, tuple) and all(matches(item, inside[0]) for item in value)
        same = isinstance(value, tuple) and len(value) == len(inside)
        return same and all(matches(item, part) for item, part in zip(value, inside, strict=True))
    if hint is float:
        return type(value) in (int, float)
    return type(value) is hint if hint in (int, bool, str) else isinstance(value, hint)


@functools.cache
def _hints(cls: Any) -> dict[str, Any]:
    # names are looked up where the class was written: its `__module__` is the one that saved files name
    return typing.get_type_hints(cls, globalns=cls.__init__.__globals__)
