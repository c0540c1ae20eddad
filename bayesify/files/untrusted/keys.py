"""Keys of dicts and members of sets: only what Python compares by code of its own, and few of one hash."""

from __future__ import annotations

import datetime
import decimal
import enum
import fractions
import pathlib
import uuid
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import FileRefusedError
from .content import SHORT

_MOST_ALIKE = 100  # keys of one hash: each is compared with all others


def keys_of(values: Iterable[Any]) -> list[Any]:
    """The values, as the keys of one dict or the members of one set.

    Raises:
        FileRefusedError: one cannot be a key, or many have one hash, by which a file could make a dict slow.
    """
    keys = [key_of(value) for value in values]
    alike = Counter(hash(key) for key in keys if not isinstance(key, str | bytes))  # theirs nobody can choose
    if max(alike.values(), default=0) > _MOST_ALIKE:
        raise FileRefusedError("has a dict or a set with many keys of one hash, which makes it slow; refused")
    return keys


def key_of(value: Any) -> Any:
    """The value, if it can be a key.

    Raises:
        FileRefusedError: it cannot, or by code of its class alone.
    """
    if isinstance(value, tuple | frozenset):
        for part in value:
            key_of(part)
    cls = type(value)
    owners = {_owner(cls, name) for name in ("__hash__", "__eq__")}
    if cls.__hash__ is None or not all(owner in _OWNERS or issubclass(owner, np.generic) for owner in owners):
        raise FileRefusedError(f"has a dict or a set with a {cls.__name__} for a key; {SHORT}")
    return value


def _owner(cls: type, name: str) -> type:
    return next(base for base in cls.__mro__ if name in vars(base))


# The classes by whose code a key may be hashed and compared: of the language, torch and numpy.
_OWNERS = frozenset({
    object, int, float, complex, str, bytes, tuple, frozenset, range, type(len), enum.Enum,
    datetime.date, datetime.datetime, datetime.time, datetime.timedelta, datetime.timezone,
    decimal.Decimal, fractions.Fraction, uuid.UUID, pathlib.PurePath,
    torch.device, Tensor, torch._C.TensorBase, np.dtype,
})  # fmt: skip
