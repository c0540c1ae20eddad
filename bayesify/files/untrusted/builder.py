"""From inert nodes to values: containers here, calls by the rules of `rules.py`, objects as a subclass decides."""

from __future__ import annotations

import enum
import pathlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ...errors import FileRefusedError
from .content import SHORT
from .global_names import Name
from .nodes import Call, Dict, Persistent, Set
from .storages import Storages
from .tensors import Tensors

Rule = Callable[[Any, Call], Any]  # takes the builder and the call

PLAIN = (type(None), bool, int, float, complex, str, bytes)
_KEYS = (*PLAIN, enum.Enum, torch.dtype, torch.device, type, pathlib.PurePath, Tensor)
_ITSELF = "has an object that is made of itself; refused"


class Builder(ABC):
    """Builds the values of one file's nodes: each node once, so that what the file shares is shared."""

    rules: Mapping[str, Rule]  # what is done in the place of a call, by the global that would be called

    def __init__(self, storages: Storages) -> None:
        self.tensors = Tensors(storages)
        self._made: dict[int, Any] = {}
        self._open: set[int] = set()

    def value(self, node: Any) -> Any:
        """The value of a node.

        Raises:
            FileRefusedError: it is not one that may be built.
        """
        if isinstance(node, PLAIN):
            return node
        if id(node) in self._made:
            return self._made[id(node)]
        if id(node) in self._open:
            raise FileRefusedError(_ITSELF)
        self._open.add(id(node))
        made = self._value(node)
        self._open.remove(id(node))
        return self.keep(node, made)

    def keep(self, node: Any, made: Any) -> Any:
        """Let the node stand for this value from now on, also inside of itself: what it holds may lead back to it."""
        self._made[id(node)] = made
        return made

    def args(self, node: Call, least: int = 0, most: int | None = None) -> list[Any]:
        """The values of a call's arguments.

        Raises:
            FileRefusedError: there are fewer or more of them, keywords, or a state or items that the call has not.
        """
        count = len(node.args)
        strange = node.kwargs and node.kwargs.pairs
        if not least <= count <= (least if most is None else most) or strange:
            raise FileRefusedError(f"calls {node.maker} as saved files never do; {SHORT}")
        return [self.value(arg) for arg in node.args]

    @abstractmethod
    def name(self, name: Name) -> Any:
        """The value of a global that is only stored."""

    @abstractmethod
    def object(self, node: Call) -> Any:
        """An object of a class that is not torch's tensor or a plain container."""

    def _value(self, node: Any) -> Any:
        if isinstance(node, list):
            made: list[Any] = self.keep(node, [])
            made += [self.value(item) for item in node]
            return made
        if isinstance(node, tuple):
            return tuple(self.value(item) for item in node)
        if isinstance(node, bytearray):
            return bytearray(node)
        if isinstance(node, Dict):
            return self.fill(self.keep(node, {}), node.pairs)
        if isinstance(node, Set):
            items = [key_of(self.value(item)) for item in node.items]
            return frozenset(items) if node.frozen else set(items)
        if isinstance(node, Name):
            return self.name(node)
        if isinstance(node, Persistent):
            return self.tensors.storages.typed(node)
        assert isinstance(node, Call)
        rule = self.rules.get(str(node.maker)) if isinstance(node.maker, Name) else None
        return self.object(node) if rule is None else self._by_rule(rule, node)

    def _by_rule(self, rule: Rule, node: Call) -> Any:
        try:
            return rule(self, node)
        except FileRefusedError:
            raise
        except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RuntimeError) as error:
            if isinstance(error, RecursionError):
                raise
            # whatever a rule stumbles over, it is not what a saved file says
            raise FileRefusedError(f"calls {node.maker} as saved files never do; {SHORT}") from None

    def fill(self, made: Any, pairs: list[tuple[Any, Any]]) -> Any:
        """Put key and value pairs into a dict."""
        for key, value in pairs:
            made[key_of(self.value(key))] = self.value(value)
        return made


def key_of(value: Any) -> Any:
    """The value, as a key of a dict or a member of a set.

    Raises:
        FileRefusedError: it cannot be one, or its hash is one of those by which a file could make a dict slow.
    """
    if isinstance(value, tuple | frozenset):
        for part in value:
            key_of(part)
    elif not (isinstance(value, _KEYS) or getattr(type(value), "is_key", False)):
        raise FileRefusedError(f"has a dict or a set with a {type(value).__name__} for a key; {SHORT}")
    elif isinstance(value, int) and abs(value) >= (1 << 61) - 1:
        raise FileRefusedError("has a dict or a set with larger numbers for keys than any that is used; refused")
    return value


def refuse_extras(node: Call) -> None:
    """Refuse a state or items for what has none.

    Raises:
        FileRefusedError: there are some.
    """
    if node.state is not None or node.items or node.pairs:
        raise FileRefusedError(f"changes what {node.maker} returned, as saved files never do; refused")


def is_data(value: Any, depth: int = 0) -> bool:
    """Whether a value is plain: numbers, texts, tensors, and containers of them."""
    if isinstance(value, list | tuple | set | frozenset):
        return depth < 8 and all(is_data(item, depth + 1) for item in value)
    if isinstance(value, dict):
        return depth < 8 and all(is_data(item, depth + 1) for item in value.values())
    return isinstance(value, (*PLAIN, Tensor, torch.dtype, torch.device, torch.Size))


def all_of(values: Any, kind: Any) -> Any:
    """The values, all of one kind.

    Raises:
        FileRefusedError: one is not.
    """
    if not all(isinstance(value, kind) for value in values):
        raise FileRefusedError(f"has an object that is not made of what it should be; {SHORT}")
    return values
