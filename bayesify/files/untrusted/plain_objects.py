"""Objects that stand beside a model's layers: made without their constructors, then given what the file says."""

from __future__ import annotations

import enum
import functools
import operator
from collections import OrderedDict
from typing import Any

from ...errors import FileRefusedError
from .attributes import set_attributes, setters
from .builder import Builder, refuse_extras
from .content import SHORT
from .keys import keys_of
from .nodes import Call, Dict
from .records import refuse_wrong_record

CALLED = (OrderedDict, set, frozenset)  # a pickle makes objects of their classes by a call
_WHOLE = (str, bytes, int, float, complex, tuple, set, frozenset)  # these are made with what they hold


def plain_object(builder: Builder, cls: Any, node: Call) -> Any:
    """An object of a class that is trusted.

    Raises:
        FileRefusedError: the class restores its objects by code of its own, or its objects are not of this kind.
    """
    if any(True for _ in setters(cls)):
        raise FileRefusedError(f"holds a {cls.__name__}, which restores itself by its own code; refused")
    if issubclass(cls, tuple) and hasattr(cls, "_fields"):
        refuse_extras(node)
        return _named_tuple(cls, builder.args(node, 0, 1000))
    made = builder.keep(node, _empty(builder, cls, node))
    if (node.items and not isinstance(made, list)) or (node.pairs and not isinstance(made, dict)):
        raise FileRefusedError(f"fills a {cls.__name__} as saved files never do; {SHORT}")
    if isinstance(made, list):
        list.extend(made, [builder.value(item) for item in node.items])
    elif isinstance(made, dict):
        put: Any = OrderedDict.__setitem__ if isinstance(made, OrderedDict) else dict.__setitem__
        for key, value in builder.fill({}, node.pairs).items():
            put(made, key, value)
    for state in node.state if isinstance(node.state, tuple) and len(node.state) == 2 else (node.state,):
        if state is not None:
            pairs = pairs_of(state, f"the state of a {cls.__name__}")
            set_attributes(made, {attribute_name(builder, cls, key): builder.value(value) for key, value in pairs})
    refuse_wrong_record(made)
    return made


def enum_member(builder: Builder, cls: type[enum.Enum], node: Call) -> enum.Enum:
    """The member of an enum that a value names.

    Raises:
        FileRefusedError: there is none.
    """
    refuse_extras(node)
    (value,) = builder.args(node, 1)
    for member in cls.__members__.values():
        if type(member._value_) is type(value) and member._value_ == value:
            return member
    if _is_combination(cls, value):
        return cls(value)
    raise FileRefusedError(f"has a {cls.__name__} of the value {str(value)[:40]!r}, which there is not; {SHORT}")


def pairs_of(node: Any, what: str) -> list[tuple[Any, Any]]:
    """The pairs of a node that is a dict.

    Raises:
        FileRefusedError: it is not.
    """
    if isinstance(node, Dict):
        return node.pairs
    if isinstance(node, Call) and str(node.maker) == "collections.OrderedDict" and not node.args:
        return node.pairs
    raise FileRefusedError(f"has something else than a dict for {what}; {SHORT}")


def attribute_name(builder: Builder, cls: type, key: Any) -> str:
    """The name of an attribute.

    Raises:
        FileRefusedError: it is not a text.
    """
    name = builder.value(key)
    if type(name) is not str:
        raise FileRefusedError(f"sets an attribute of a {cls.__name__} that has no name; {SHORT}")
    return name


def fresh(cls: Any, base: Any = None, *value: Any) -> Any:
    """An object of the class on which nothing of its code has run.

    Args:
        cls: the class.
        base: the class of Python's whose `__new__` makes it; found where it is not given.
        value: what that is given.

    Raises:
        FileRefusedError: there is no such object.
    """
    base = base or next((kind for kind in (OrderedDict, dict, list) if issubclass(cls, kind)), object)
    try:
        return base.__new__(cls, *value)
    except TypeError:
        raise FileRefusedError(f"holds a {cls.__name__}, of a kind that cannot be built from data; refused") from None


def _empty(builder: Builder, cls: Any, node: Call) -> Any:
    """An object of the class before it is filled; what cannot be filled later, a text or a set, with its value."""
    base: Any = next((kind for kind in _WHOLE if issubclass(cls, kind)), None)
    if base is None:
        builder.args(node, 0)
        return fresh(cls)
    value: Any
    (value,) = builder.args(node, 1)
    if type(value) is not (list if base in (set, frozenset) else base):
        raise FileRefusedError(f"has a {cls.__name__} of a {type(value).__name__}; {SHORT}")
    if base is not set:
        return fresh(cls, base, keys_of(value) if base is frozenset else value)
    made = fresh(cls, set)
    set.update(made, keys_of(value))
    return made


def _named_tuple(cls: Any, values: list[Any]) -> Any:
    if len(values) != len(getattr(cls, "_fields", ())):
        raise FileRefusedError(f"has a {cls.__name__} of {len(values)} values; {SHORT}")
    return tuple.__new__(cls, values)


def _is_combination(cls: Any, value: Any) -> bool:
    """Whether a value is several flags at once, which the standard library looks up, and no code of the class."""
    standard = issubclass(cls, enum.Flag) and type(cls) is type(enum.Flag)
    if not standard or cls._missing_.__func__ is not vars(enum.Flag)["_missing_"].__func__ or type(value) is not int:
        return False
    known = functools.reduce(operator.or_, (member._value_ for member in cls.__members__.values()), 0)
    return value >= 0 and not value & ~known
