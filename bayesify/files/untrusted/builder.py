"""From inert nodes to values: containers here, calls by the rules of `rules.py`, objects as a subclass decides."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ...errors import FileRefusedError
from .content import SHORT
from .global_names import Name
from .keys import keys_of
from .nodes import Call, Dict, Persistent, Set
from .storages import Storages, TypedMemory
from .tensors import Tensors

Rule = Callable[[Any, Call], Any]  # takes the builder and the call

PLAIN = (type(None), bool, int, float, complex, str, bytes)
_ITSELF = "has an object that is made of itself; refused"


class Builder(ABC):
    """Builds the values of one file's nodes: each node once, so that what the file shares is shared."""

    rules: Mapping[str, Rule]  # what is done in the place of a call, by the global that would be called

    def __init__(self, storages: Storages) -> None:
        self.tensors = Tensors(storages)
        self._made: dict[int, tuple[Any, Any]] = {}
        self._open: set[int] = set()

    def value(self, node: Any) -> Any:
        """The value of a node.

        Raises:
            FileRefusedError: it is not one that may be built.
        """
        if isinstance(node, PLAIN):
            return node
        if id(node) in self._made:
            return self._made[id(node)][1]
        if id(node) in self._open:
            raise FileRefusedError(_ITSELF)
        self._open.add(id(node))
        made = self._value(node)
        self._open.remove(id(node))
        return self.keep(node, made)

    def keep(self, node: Any, made: Any) -> Any:
        """Let the node stand for this value from now on, also inside of itself: what it holds may lead back to it."""
        self._made[id(node)] = node, made  # the node too, so that no later one takes its id
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

    def memory(self, node: Any) -> TypedMemory:
        """The memory that a tensor's storage names.

        Raises:
            FileRefusedError: it names none.
        """
        return self.tensors.storages.typed(node)

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
            items = keys_of(self.value(item) for item in node.items)
            return frozenset(items) if node.frozen else set(items)
        if isinstance(node, Name):
            return self.name(node)
        if isinstance(node, Persistent):
            return self.memory(node).storage()
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
        keys = keys_of(self.value(key) for key, _ in pairs)
        for key, (_, value) in zip(keys, pairs, strict=True):
            made[key] = self.value(value)
        return made


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
