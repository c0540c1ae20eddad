"""Which regular expressions a file may hold: those that no name keeps busy for long.

Python's `re` tries every way in which repetitions can share a text. `(a+)+` has exponentially many, and each further
`.*` multiplies them by the name's length. So there are limits:

- no repetition, and no choice, inside a repetition, unless each round ends in a dot that nothing else in it can match;
- at most 4 repetitions that can match a dot, at most 4 others between two dots, and at most 10 optional parts (`?`).
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from importlib import import_module
from typing import Any

parser: Any = import_module("re._parser" if sys.version_info >= (3, 11) else "sre_parse")

MOST = 4  # repetitions that can share a text
MOST_OPTIONAL = 10
_DOT = ord(".")


def why_slow(pattern: str) -> str | None:
    """What makes a regular expression slow, as the end of a sentence; None where nothing does."""
    tree = list(parser.parse(pattern))
    if any(_is_ambiguous(body) for body in _repeated(tree)):
        return "repeats a repetition or a choice, which can take forever; end each round in '\\.', or name more targets"
    narrow = wide = optional = 0
    for name, argument in _flat(tree):
        if name == "LITERAL" and argument == _DOT:
            narrow = 0
        elif "REPEAT" in name and argument[0] != argument[1]:
            is_optional, is_wide = argument[1] == 1, _can_match_dot(argument[2])
            optional += is_optional
            wide += is_wide and not is_optional
            narrow += not is_wide and not is_optional
        if wide > MOST or narrow > MOST:
            return f"has over {MOST} repetitions in a row, which can take forever; name more targets instead"
    return f"has over {MOST_OPTIONAL} optional parts; name more targets instead" if optional > MOST_OPTIONAL else None


def _flat(tree: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    """(operation, argument) of every node, in the order of the text."""
    for operation, argument in tree:
        yield str(operation), argument
        for inside in _inside(argument):
            yield from _flat(inside)


def _inside(argument: Any) -> Iterator[list[Any]]:
    """The sequences of nodes inside a node."""
    if isinstance(argument, parser.SubPattern):
        yield list(argument)
    elif isinstance(argument, tuple | list):
        for part in argument:
            yield from _inside(part)


def _repeated(tree: Iterable[Any]) -> Iterator[list[Any]]:
    """What each repetition repeats."""
    return (list(argument[2]) for name, argument in _flat(tree) if "REPEAT" in name and argument[1] > 1)


def _is_ambiguous(body: list[Any]) -> bool:
    inside = list(_flat(body))
    several = any(name == "BRANCH" or ("REPEAT" in name and argument[0] != argument[1]) for name, argument in inside)
    ends_in_dot = str(body[-1][0]) == "LITERAL" and body[-1][1] == _DOT if body else False
    return several and not (ends_in_dot and not _can_match_dot(body[:-1]))


def _can_match_dot(body: Iterable[Any]) -> bool:
    return any(_matches_dot(name, argument) for name, argument in _flat(body))


def _matches_dot(name: str, argument: Any) -> bool:
    """Whether a node that matches one character can match a dot."""
    if name in ("LITERAL", "NOT_LITERAL"):
        return bool((argument == _DOT) == (name == "LITERAL"))
    if name == "IN":
        members = [(str(kind), value) for kind, value in argument]
        hit = any(_is_dot(kind, value) for kind, value in members)
        return hit != (members[0][0] == "NEGATE")
    return name in ("ANY", "GROUPREF")


def _is_dot(kind: str, value: Any) -> bool:
    if kind == "RANGE":
        return bool(value[0] <= _DOT <= value[1])
    if kind == "CATEGORY":
        return "NOT" in str(value)  # a dot is not a digit, a word or a space
    return kind == "LITERAL" and value == _DOT
