"""How large and deep inert data becomes for code that walks it: what a file shares must not unfold without end."""

from __future__ import annotations

from typing import Any

from ...errors import FileRefusedError
from .content import SHORT
from .nodes import Dict, Set, children

_FREE = 1_000_000
_PER_NODE = 100
_DEEPEST = 5_000
_CONTAINERS = (list, tuple, Dict, Set)


def refuse_unfolding(root: Any) -> None:
    """Refuse nodes that are shared so often that walking every path through them would take far longer than reading.

    Raises:
        FileRefusedError: they unfold to more than a hundred times their number, are inside of each other without end,
            or are containers that hold themselves.
    """
    sizes: dict[int, int] = {}
    waiting: list[tuple[Any, bool]] = [(root, False)]
    depth, circles = 0, False
    while waiting:
        node, inside_done = waiting.pop()
        inner = children(node)
        if inside_done:
            depth -= 1
            sizes[id(node)] = 1 + sum(sizes.get(id(child), 1) for child in inner)
        elif inner and id(node) not in sizes:
            depth += 1
            if depth > _DEEPEST:
                raise FileRefusedError(f"holds objects inside of objects, deeper than any model; {SHORT}")
            sizes[id(node)] = 0  # while it is open: what leads back to it, as a child to its parent, adds nothing
            waiting.append((node, True))
            circles = circles or any(sizes.get(id(child)) == 0 for child in inner)
            waiting += [(child, False) for child in inner if id(child) not in sizes]
    if max(sizes.values(), default=0) > _FREE + _PER_NODE * len(sizes):
        raise FileRefusedError("shares its parts so often that they unfold to far more than the file; refused")
    if circles:
        _refuse_circles(root)


def _refuse_circles(root: Any) -> None:
    """Refuse containers that hold themselves by way of containers alone: an object may lead back to what holds it."""
    closed: set[int] = set()
    seen: set[int] = set()
    starts = [root]
    while starts:
        start = starts.pop()
        if id(start) in seen:
            continue
        seen.add(id(start))
        starts += children(start)
        waiting: list[tuple[Any, bool]] = [(start, False)]
        open_now: set[int] = set()
        while waiting and isinstance(start, _CONTAINERS):
            node, inside_done = waiting.pop()
            if inside_done:
                open_now.remove(id(node))
                closed.add(id(node))
            elif id(node) in open_now:
                raise FileRefusedError("has a list or a dict that holds itself; refused")
            elif id(node) not in closed:
                open_now.add(id(node))
                waiting.append((node, True))
                waiting += [(child, False) for child in children(node) if isinstance(child, _CONTAINERS)]
