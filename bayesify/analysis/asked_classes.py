"""Code that tells layers apart by their exact class, which conversion changes: `type(layer) is nn.Linear`."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from types import CodeType, FunctionType
from typing import Any

from torch import nn

from .bytecode import code_from

_QUESTIONS = {"type", "__class__", "_get_name"}


def asks_for_class(module: nn.Module, asked: type) -> bool:
    """Whether the forward of `module`, or a function beside it that it calls, may compare a layer's class with `asked`.

    By itself, by its name, or as a key of a table that the module or its code holds.
    """
    for code, space in _codes(type(module)):
        if _QUESTIONS & {*code.co_names}:
            tables = (place.get(name) for name in code.co_names for place in (vars(module), vars(type(module)), space))
            if asked.__name__ in _mentioned(code) or any(_holds(table, asked) for table in tables):
                return True
    return False


def _codes(cls: Any) -> Iterator[tuple[CodeType, dict[str, Any]]]:
    """The code of the forward and of what it calls by name, with the globals that it sees."""
    space = getattr(inspect.unwrap(inspect.getattr_static(cls, "forward", None)), "__globals__", {})
    for code in code_from(cls, "forward"):
        yield code, space
        for function in (space.get(name) for name in code.co_names):
            if isinstance(function, FunctionType) and function.__module__ == cls.__module__:
                yield function.__code__, function.__globals__


def _mentioned(code: CodeType) -> set[str]:
    """Names in the code, and words in its strings, except in sentences."""
    groups = (constant for constant in code.co_consts if isinstance(constant, tuple | frozenset))
    constants = [*code.co_consts, *(part for group in groups for part in group)]
    texts = (constant for constant in constants if isinstance(constant, str) and " " not in constant)
    return {*code.co_names, *(word for text in texts for word in re.split(r"\W+", text))}


def _holds(table: Any, asked: type) -> bool:
    return isinstance(table, dict | list | tuple | set | frozenset) and any(each is asked for each in table)
