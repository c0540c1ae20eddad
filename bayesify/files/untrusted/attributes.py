"""Which attributes a file may give to an object: data under plain names, and nothing in the place of a method."""

from __future__ import annotations

import functools
import types
from collections.abc import Iterator
from typing import Any

from ...errors import FileRefusedError

_DATA_LIKE = (functools.cached_property, types.MemberDescriptorType, property)


def refuse_attribute(cls: type, name: Any) -> None:
    """Refuse an attribute that would change what an object of the class does.

    Raises:
        FileRefusedError: its name is Python's own (`__reduce__`), or that of a method of the class (`forward`).
    """
    if not isinstance(name, str) or (name.startswith("__") and name.endswith("__")):
        raise FileRefusedError(f"sets {str(name)[:80]!r} on a {cls.__name__}, which no model needs; refused")
    standard = _of_class(cls, name)
    if standard is not None and not isinstance(standard, _DATA_LIKE) and _acts(standard):
        raise FileRefusedError(
            f"puts something in the place of {cls.__name__}.{name}, which the class itself defines; refused. Build the "
            "model by its code and give it the file's weights: bayesify.load(FILE, into=model)"
        )


def set_attributes(made: Any, values: dict[str, Any]) -> None:
    """Give an object its attributes, past what its class would do about them."""
    cls = type(made)
    for name, value in values.items():
        refuse_attribute(cls, name)
        if isinstance(_of_class(cls, name), types.MemberDescriptorType):
            object.__setattr__(made, name, value)
        elif hasattr(made, "__dict__"):
            made.__dict__[name] = value
        else:
            raise FileRefusedError(f"sets the attribute {name[:80]!r}, which a {cls.__name__} cannot have; refused")


def _of_class(cls: type, name: str) -> Any:
    return next((vars(base)[name] for base in cls.__mro__ if name in vars(base)), None)


def _acts(standard: Any) -> bool:
    return callable(standard) or isinstance(standard, staticmethod | classmethod) or hasattr(type(standard), "__get__")


def setters(cls: type) -> Iterator[type]:
    """The classes that restore an object's state by code of their own, the nearest first."""
    return (base for base in cls.__mro__ if "__setstate__" in vars(base))
