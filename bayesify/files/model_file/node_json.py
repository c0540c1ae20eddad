"""Inert nodes as JSON and back: one flat table, in which a node refers to others by their place.

A value is a JSON number, text, true, false or null, or `[place]`. So what is shared stays shared, and nothing nests.
"""

from __future__ import annotations

import base64
import math
from typing import Any

from ...errors import FileRefusedError
from ..untrusted.content import SHORT
from ..untrusted.global_names import Name
from ..untrusted.nodes import Call, Dict, Persistent, Set

Table = list[dict[str, Any]]

_DAMAGED = f"describes its model in a way that cannot be; {SHORT}"


def to_table(root: Any) -> tuple[Table, Any]:
    """(table, value of the root)."""
    encoder = _Encoder()
    value = encoder.value(root)
    while encoder.waiting:
        place, node = encoder.waiting.pop()
        encoder.table[place] = encoder.entry(node)
    return encoder.table, value


def from_table(table: Any, root: Any) -> Any:
    """The root's node.

    Raises:
        FileRefusedError: the table is not one that `to_table` makes.
    """
    try:
        return _Decoder(table).value(root)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RecursionError) as error:
        if isinstance(error, FileRefusedError):
            raise
        raise FileRefusedError(_DAMAGED) from None


class _Encoder:
    def __init__(self) -> None:
        self.table: Table = []
        self.waiting: list[tuple[int, Any]] = []
        self._places: dict[int, int] = {}
        self._kept: list[Any] = []  # so that no other node takes the id of one that is gone

    def value(self, node: Any) -> Any:
        if node is None or isinstance(node, bool | int | str) or (isinstance(node, float) and math.isfinite(node)):
            return node
        if id(node) not in self._places:
            self._places[id(node)] = len(self.table)
            self._kept.append(node)
            self.table.append({})
            self.waiting.append((self._places[id(node)], node))
        return [self._places[id(node)]]

    def entry(self, node: Any) -> dict[str, Any]:
        if isinstance(node, float):
            return {"float": str(node)}
        if isinstance(node, bytes | bytearray):
            return {type(node).__name__: base64.b64encode(node).decode()}
        if isinstance(node, list | tuple):
            return {type(node).__name__: [self.value(item) for item in node]}
        if isinstance(node, Dict):
            return {"dict": self._pairs(node.pairs)}
        if isinstance(node, Set):
            return {"frozenset" if node.frozen else "set": [self.value(item) for item in node.items]}
        if isinstance(node, Name):
            return {"name": [node.module, node.qualname]}
        if isinstance(node, Persistent):
            _, kind, key, _, count = node.identifier[:5]
            return {"storage": [kind.qualname, key, count]}
        assert isinstance(node, Call)
        assert node.kwargs is None or not node.kwargs.pairs
        entry = {"new" if node.new else "call": self.value(node.maker), "args": self.value(node.args)}
        if node.state is not None:
            entry["state"] = self.value(node.state)
        if node.items:
            entry["items"] = [self.value(item) for item in node.items]
        if node.pairs:
            entry["pairs"] = self._pairs(node.pairs)
        return entry

    def _pairs(self, pairs: list[tuple[Any, Any]]) -> list[list[Any]]:
        return [[self.value(key), self.value(value)] for key, value in pairs]


class _Decoder:
    def __init__(self, table: Any) -> None:
        if not isinstance(table, list) or not all(isinstance(entry, dict) and entry for entry in table):
            raise FileRefusedError(_DAMAGED)
        self.table = table
        self.nodes: list[Any] = [_shell(entry) for entry in table]
        for entry, node in zip(table, self.nodes, strict=True):
            self._fill(entry, node)

    def value(self, value: Any) -> Any:
        if value is None or isinstance(value, bool | int | float | str):
            return value
        if not isinstance(value, list) or len(value) != 1 or type(value[0]) is not int or value[0] < 0:
            raise FileRefusedError(_DAMAGED)
        place = value[0]
        if self.nodes[place] is _LATER:
            self.nodes[place] = None  # what a tuple of itself finds
            self.nodes[place] = tuple(self.value(item) for item in self.table[place]["tuple"])
        return self.nodes[place]

    def _fill(self, entry: dict[str, Any], node: Any) -> None:
        if isinstance(node, list):
            node += [self.value(item) for item in entry["list"]]
        elif isinstance(node, Dict):
            node.pairs += self._pairs(entry["dict"])
        elif isinstance(node, Set):
            node.items += [self.value(item) for item in entry["frozenset" if node.frozen else "set"]]
        elif isinstance(node, Call):
            node.maker, node.args = self.value(entry["new" if node.new else "call"]), self.value(entry["args"])
            if not isinstance(node.args, tuple):
                raise FileRefusedError(_DAMAGED)
            node.state = self.value(entry.get("state"))
            node.items += [self.value(item) for item in entry.get("items", [])]
            node.pairs += self._pairs(entry.get("pairs", []))

    def _pairs(self, pairs: list[Any]) -> list[tuple[Any, Any]]:
        return [(self.value(key), self.value(value)) for key, value in pairs]


_LATER: Any = object()


def _shell(entry: dict[str, Any]) -> Any:
    """The node of an entry, without what it holds."""
    kind = next(iter(entry))
    content = entry[kind]
    if kind == "name":
        module, qualname = content
        return Name(_text(module), _text(qualname))
    if kind == "storage":
        storage, key, count = content
        return Persistent(("storage", Name("torch", _text(storage)), _text(key), "cpu", count))
    if kind == "float":
        return float(content)
    if kind in ("bytes", "bytearray"):
        data = base64.b64decode(content, validate=True)
        return bytearray(data) if kind == "bytearray" else data
    if kind in ("list", "dict"):
        return [] if kind == "list" else Dict()
    if kind in ("set", "frozenset"):
        return Set([], frozen=kind == "frozenset")
    if kind in ("new", "call"):
        return Call(None, (), new=kind == "new")
    if kind == "tuple":
        return _LATER
    raise FileRefusedError(_DAMAGED)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise FileRefusedError(_DAMAGED)
    return value
