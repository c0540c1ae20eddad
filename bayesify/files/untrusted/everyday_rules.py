"""Plain objects of the standard library and of numpy that people keep in their models, each built by its own rule."""

from __future__ import annotations

import argparse
import datetime
import decimal
import fractions
import functools
import logging
import pathlib
import re
import types
import uuid
import zoneinfo
from collections import deque
from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import FileRefusedError
from .builder import Builder, Rule, refuse_extras
from .content import NO_ALLOW, SHORT
from .global_names import Name
from .nodes import Call

_LONGEST = 1000  # digits or letters of a number that is written as a text
_SAFE_TO_CONSTRUCT = ("torch.nn.", "torch._C.", "torchvision.ops.", "timm.layers.")


def _called(function: Callable[..., Any], *kinds: Any, least: int) -> Rule:
    """A rule: call the function with arguments of these kinds, `least` of them or more."""

    def rule(builder: Builder, node: Call) -> Any:
        refuse_extras(node)
        args = builder.args(node, least, len(kinds))
        if not all(isinstance(arg, kind) for arg, kind in zip(args, kinds, strict=False)):
            raise _damaged(node)
        if any(isinstance(arg, str | bytes) and len(arg) > _LONGEST for arg in args):
            raise _damaged(node)
        try:
            return function(*args)
        except (ValueError, TypeError, OverflowError, ArithmeticError, LookupError, OSError):
            raise _damaged(node) from None

    return rule


def _damaged(node: Call) -> FileRefusedError:
    return FileRefusedError(f"has a {node.maker} that cannot be; {SHORT}")


def _path(kind: type[pathlib.PurePath]) -> Rule:
    def rule(builder: Builder, node: Call) -> pathlib.PurePath:
        refuse_extras(node)
        parts = builder.args(node, 0, 1000)
        if not all(isinstance(part, str) and "\0" not in part for part in parts):
            raise _damaged(node)
        return kind(*parts)

    return rule


def _deque(builder: Builder, node: Call) -> Any:
    items, longest = (*builder.args(node, 0, 2), (), None)[:2] if node.args else ((), None)
    if not isinstance(items, tuple | list) or not isinstance(longest, int | None) or (longest or 0) < 0:
        raise _damaged(node)
    if node.state is not None or node.pairs:
        raise _damaged(node)
    made: Any = builder.keep(node, deque(items, longest))
    made.extend(builder.value(item) for item in node.items)
    return made


def _namespace(kind: Callable[[], Any]) -> Rule:
    def rule(builder: Builder, node: Call) -> Any:
        builder.args(node, 0)
        made = builder.keep(node, kind())
        state = builder.value(node.state) or {}
        if not isinstance(state, dict) or node.items or node.pairs:
            raise _damaged(node)
        for name in state:
            if not isinstance(name, str) or name.startswith("__") or hasattr(type(made), name):
                raise FileRefusedError(f"has a {node.maker} with {str(name)[:80]!r}, which it cannot carry; refused")
        vars(made).update(state)
        return made

    return rule


def _uuid(builder: Builder, node: Call) -> uuid.UUID:
    builder.args(node, 0)
    state = {name: builder.value(value) for name, value in getattr(node.state, "pairs", ()) if name == "int"}
    if not isinstance(state.get("int"), int) or not 0 <= state["int"] < 1 << 128:
        raise _damaged(node)
    return uuid.UUID(int=state["int"])


def _partial(builder: Builder, node: Call) -> Any:
    """`partial(function)` with (function, args, keywords, attributes) as its state: of layers and activations only."""
    (function,) = node.args if len(node.args) == 1 else (None,)
    parts = node.state if isinstance(node.state, tuple) and len(node.state) == 4 else (function, (), None, None)
    for named in (function, parts[0]):
        if not isinstance(named, Name) or not str(named).startswith(_SAFE_TO_CONSTRUCT):
            raise FileRefusedError(
                "prepares a call (functools.partial) of something else than a layer or an activation of torch, which "
                f"saved models never do; {NO_ALLOW}"
            )
    target, args, keywords = builder.value(parts[0]), builder.value(parts[1]), builder.value(parts[2])
    strange = node.items or node.pairs or builder.value(parts[3])
    if strange or not isinstance(args, tuple) or not isinstance(keywords, dict | None):
        raise _damaged(node)
    if not all(isinstance(name, str) for name in keywords or {}):
        raise _damaged(node)
    return functools.partial(target, *args, **(keywords or {}))


def _numpy_dtype(builder: Builder, node: Call) -> np.dtype[Any]:
    """`dtype(code, align, copy)` with its byte order as second part of its state."""
    code, *_ = builder.args(node, 1, 3)
    state = builder.value(node.state) or ()
    plain = isinstance(code, str) and re.fullmatch(r"([biufc]|[SUMm])\d{1,6}", code)
    if not plain or not isinstance(state, tuple) or any(state[3:5]) or node.items or node.pairs:
        raise FileRefusedError(f"has numpy numbers of the type {str(code)[:20]!r}, which are not plain; refused")
    try:
        unit = state[8][1][0].decode() if len(state) > 8 and code[0] in "Mm" else ""
        dtype = np.dtype(f"{code}[{unit}]" if re.fullmatch(r"[A-Za-z]{1,2}", unit) else code)
    except (TypeError, ValueError, IndexError, AttributeError):
        raise _damaged(node) from None
    return dtype.newbyteorder(state[1]) if len(state) > 1 and state[1] in ("<", ">") else dtype


def _numpy_scalar(builder: Builder, node: Call) -> Any:
    refuse_extras(node)
    dtype, content = builder.args(node, 2)
    content = content.encode("latin1") if isinstance(content, str) else content
    if not isinstance(dtype, np.dtype) or not isinstance(content, bytes) or len(content) != dtype.itemsize:
        raise _damaged(node)
    return np.frombuffer(content, dtype, count=1)[0] if dtype.itemsize else dtype.type()


def _numpy_array(builder: Builder, node: Call) -> Any:
    """`_reconstruct(ndarray, (0,), b"b")` with (version, shape, dtype, fortran, bytes) as its state."""
    state = builder.value(node.state)
    if not isinstance(state, tuple) or len(state) != 5 or node.items or node.pairs:
        raise _damaged(node)
    if not (node.args and isinstance(node.args[0], Name) and str(node.args[0]) == "numpy.ndarray"):
        raise FileRefusedError(f"has an array of the class {str(node.args[:1])[:80]}, not numpy's own; refused")
    _, shape, dtype, fortran, content = state
    return _array(node, content, dtype, shape, "F" if fortran else "C")


def _numpy_buffer(builder: Builder, node: Call) -> Any:
    """`_frombuffer(bytes, dtype, shape, order)`, of pickle protocol 5."""
    refuse_extras(node)
    content, dtype, shape, order = builder.args(node, 4)
    return _array(node, content, dtype, shape, order)


def _array(node: Call, content: Any, dtype: Any, shape: Any, order: Any) -> Any:
    content = content.encode("latin1") if isinstance(content, str) else content
    whole = isinstance(content, bytes | bytearray) and isinstance(dtype, np.dtype) and isinstance(shape, tuple)
    if not whole or order not in ("C", "F") or any(type(size) is not int or size < 0 for size in shape):
        raise _damaged(node)
    if dtype.itemsize == 0 or prod(shape) * dtype.itemsize != len(content) or len(shape) > 32:
        raise _damaged(node)
    return np.frombuffer(bytes(content), dtype).reshape(shape, order=order).copy(order=order)


def _generator(builder: Builder, node: Call) -> torch.Generator:
    """`Generator(device)` with (seed, offset, state) as its state; one of another device starts afresh on the CPU."""
    (device,), state = builder.args(node, 1), builder.value(node.state)
    if not isinstance(device, torch.device) or not isinstance(state, tuple) or len(state) != 3:
        raise _damaged(node)
    made = torch.Generator("cpu")
    if device.type == "cpu" and isinstance(state[2], Tensor) and not state[2].is_meta:
        try:
            made.set_state(state[2])
        except (RuntimeError, TypeError):
            raise _damaged(node) from None
    return made


def _fraction(one: str | int, other: int = 1) -> fractions.Fraction:
    if isinstance(one, str):  # as Python wrote them once; other texts may stand for numbers without end
        one, other = (int(part) for part in one.split("/"))
    return fractions.Fraction(one, other)


def _logger(name: str = "root") -> logging.Logger:
    if not re.fullmatch(r"\w[\w.-]{0,200}", name):
        raise ValueError("no name of a logger")
    return logging.getLogger(name)


def _zone(key: str, *_: Any) -> zoneinfo.ZoneInfo:
    return zoneinfo.ZoneInfo(key)


_WINDOWS = pathlib.PureWindowsPath if pathlib.Path is not getattr(pathlib, "WindowsPath", None) else pathlib.WindowsPath
_POSIX = type(pathlib.Path()) if isinstance(pathlib.Path(), pathlib.PosixPath) else pathlib.PurePosixPath
_NUMBER = int | float | None

EVERYDAY_RULES: dict[str, Rule] = {
    "argparse.Namespace": _namespace(argparse.Namespace),
    "types.SimpleNamespace": _namespace(types.SimpleNamespace),
    "collections.deque": _deque,
    "functools.partial": _partial,
    "builtins.range": _called(range, int, int, int, least=1),
    "builtins.slice": _called(slice, _NUMBER, _NUMBER, _NUMBER, least=1),
    "datetime.datetime": _called(datetime.datetime, str | bytes, datetime.tzinfo, least=1),
    "datetime.date": _called(datetime.date, str | bytes, least=1),
    "datetime.time": _called(datetime.time, str | bytes, datetime.tzinfo, least=1),
    "datetime.timedelta": _called(datetime.timedelta, int, int, int, least=0),
    "datetime.timezone": _called(datetime.timezone, datetime.timedelta, str, least=1),
    "zoneinfo.ZoneInfo._unpickle": _called(_zone, str, object, least=1),
    "logging.getLogger": _called(_logger, str, least=0),
    "decimal.Decimal": _called(decimal.Decimal, str, least=1),
    "fractions.Fraction": _called(_fraction, str | int, int, least=1),
    "uuid.UUID": _uuid,
    "pathlib.PosixPath": _path(_POSIX),
    "pathlib.WindowsPath": _path(_WINDOWS),
    "pathlib.PurePosixPath": _path(pathlib.PurePosixPath),
    "pathlib.PureWindowsPath": _path(pathlib.PureWindowsPath),
    "pathlib._local.PosixPath": _path(_POSIX),
    "pathlib._local.WindowsPath": _path(_WINDOWS),
    "numpy.dtype": _numpy_dtype,
    "numpy.core.multiarray.scalar": _numpy_scalar,
    "numpy._core.multiarray.scalar": _numpy_scalar,
    "numpy.core.multiarray._reconstruct": _numpy_array,
    "numpy._core.multiarray._reconstruct": _numpy_array,
    "numpy.core.numeric._frombuffer": _numpy_buffer,
    "numpy._core.numeric._frombuffer": _numpy_buffer,
    "torch._C.Generator": _generator,
}
