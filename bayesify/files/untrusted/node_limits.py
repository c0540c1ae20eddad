"""How large inert data becomes for code that walks it: what a file shares over and over must not unfold without end."""

from __future__ import annotations

from typing import Any

from ...errors import FileRefusedError
from .nodes import children

_FREE = 1_000_000
_PER_NODE = 100


def refuse_unfolding(root: Any) -> None:
    """Refuse nodes that are shared so often that walking every path through them would take far longer than reading.

    Raises:
        FileRefusedError: they unfold to more than a hundred times their number.
    """
    sizes: dict[int, int] = {}
    waiting: list[tuple[Any, bool]] = [(root, False)]
    while waiting:
        node, inside_done = waiting.pop()
        inner = children(node)
        if inside_done:
            sizes[id(node)] = 1 + sum(sizes.get(id(child), 1) for child in inner)
        elif inner and id(node) not in sizes:
            sizes[id(node)] = 0  # while it is open: what leads back to it, as a child to its parent, adds nothing
            waiting.append((node, True))
            waiting += [(child, False) for child in inner if id(child) not in sizes]
    if max(sizes.values(), default=0) > _FREE + _PER_NODE * len(sizes):
        raise FileRefusedError("shares its parts so often that they unfold to far more than the file; refused")
