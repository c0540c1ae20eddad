"""Whether a value beside the tensors came back as it was saved, as far as that shows without the tensors' numbers."""

from __future__ import annotations

import argparse
import functools
import sys
import types
from collections import defaultdict, deque
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils.hooks import RemovableHandle

_CLASS_ONLY = (nn.Module, torch.Generator, RemovableHandle, torch.UntypedStorage, torch.TypedStorage)
_HOLD_NAMES = (argparse.Namespace, types.SimpleNamespace)


def same_value(mine: Any, theirs: Any, seen: dict[int, Any]) -> bool:
    """Whether the two are of one class and hold the same; of modules and random generators, the class alone.

    Args:
        mine, theirs: the two values.
        seen: what was compared already, by its id: what leads back to itself, or is shared, is compared once.
    """
    if type(mine) is not type(theirs):
        return False
    if mine is theirs or id(mine) in seen or isinstance(mine, _CLASS_ONLY):
        return True
    seen[id(mine)] = mine
    if isinstance(mine, Tensor):
        return bool(form_of(mine) == form_of(theirs))
    if isinstance(mine, np.ndarray):
        return bool(mine.dtype == theirs.dtype and mine.shape == theirs.shape and mine.tobytes() == theirs.tobytes())
    parts, other = _parts(mine), _parts(theirs)
    if len(parts) != len(other) or not all(same_value(*pair, seen) for pair in zip(parts, other, strict=True)):
        return False
    standard = type(mine).__module__.partition(".")[0] in sys.stdlib_module_names
    if not parts and standard and not isinstance(mine, _HOLD_NAMES):
        return bool(mine == theirs or mine != mine)  # NaN is not itself
    return _same_attributes(mine, theirs, seen)


def form_of(tensor: Tensor) -> Any:
    """What a tensor is, beside its numbers and its device."""
    if is_lazy(tensor):
        return type(tensor)
    steps: Any = tensor.stride() if tensor.layout == torch.strided else tensor.layout
    return type(tensor), tensor.shape, tensor.dtype, tensor.requires_grad, steps


def _parts(value: Any) -> list[Any]:
    if isinstance(value, dict):
        factory = [value.default_factory] if isinstance(value, defaultdict) else []
        return [*factory, *value.keys(), *value.values()]
    if isinstance(value, set | frozenset):
        return [len(value)]  # their order is not the file's
    if isinstance(value, list | tuple | deque):
        return [*value, value.maxlen if isinstance(value, deque) else None]
    if isinstance(value, functools.partial):
        return [value.func, value.args, value.keywords]
    return []


def _same_attributes(mine: Any, theirs: Any, seen: dict[int, Any]) -> bool:
    held = [_attributes(value) for value in (mine, theirs)]
    return held[0].keys() == held[1].keys() and all(same_value(held[0][name], held[1][name], seen) for name in held[0])


def _attributes(value: Any) -> dict[str, Any]:
    """What an object holds under names, in its dict and in slots."""
    slots = [vars(base).get("__slots__", ()) for base in type(value).__mro__]
    names = [name for given in slots for name in ([given] if isinstance(given, str) else given)]
    held = {name: getattr(value, name) for name in names if hasattr(value, name) and name != "__dict__"}
    return {**held, **getattr(value, "__dict__", {})}
