"""Inert nodes: what a pickle says should be made, as data. Nothing here imports, calls or looks up anything.

Numbers, texts, bytes, None, lists and tuples stand for themselves, lists and tuples with nodes in them.
"""

from __future__ import annotations

from typing import Any

from .global_names import Name


class Dict:
    """A dict, as the pairs in which it was filled: keys are nodes and were never hashed."""

    __slots__ = ("pairs",)

    def __init__(self) -> None:
        self.pairs: list[tuple[Any, Any]] = []


class Set:
    """A set, or a frozen one."""

    __slots__ = ("frozen", "items")

    def __init__(self, items: list[Any], frozen: bool) -> None:
        self.items = items
        self.frozen = frozen


class Call:
    """An object as a pickle makes one: by a call of `maker`, or by its `__new__` alone; then its state and items."""

    __slots__ = ("args", "items", "kwargs", "maker", "new", "pairs", "state")

    def __init__(self, maker: Any, args: Any, kwargs: Dict | None = None, *, new: bool) -> None:
        self.maker = maker
        self.args = args
        self.kwargs = kwargs
        self.new = new
        self.state: Any = None
        self.items: list[Any] = []
        self.pairs: list[tuple[Any, Any]] = []


class Persistent:
    """What stands outside of the pickle: a tensor's storage, by the identifier that torch gives it."""

    __slots__ = ("identifier",)

    def __init__(self, identifier: Any) -> None:
        self.identifier = identifier


def children(node: Any) -> list[Any]:
    """The nodes directly inside a node."""
    if isinstance(node, list | tuple):
        return list(node)
    if isinstance(node, Dict):
        return [part for pair in node.pairs for part in pair]
    if isinstance(node, Set):
        return node.items
    if isinstance(node, Call):
        pairs = [part for pair in node.pairs for part in pair]
        return [node.maker, node.args, node.kwargs, node.state, *node.items, *pairs]
    return []


def names_in(root: Any) -> list[Name]:
    """The globals that a node and all that is inside of it name, each once."""
    names: dict[Name, None] = {}
    seen: set[int] = set()
    waiting = [root]
    while waiting:
        node = waiting.pop()
        if isinstance(node, Name):
            names[node] = None
        elif (inner := children(node)) and id(node) not in seen:
            seen.add(id(node))
            waiting += reversed(inner)
    return list(names)
