"""What a class of layers declares, held against what a file gives a layer: tensors, numbers, texts, sequences."""

from __future__ import annotations

import functools
import typing
from collections.abc import Iterator
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.nn.parameter import Parameter
from torch.utils import _pytree as pytree

from ...errors import FileRefusedError
from ...nn.base import Variational
from ...nn.settings import Settings
from .content import SHORT

_TENSORS = (Tensor, "Tensor", Parameter, "Parameter")
_NUMBER = (int, float, np.generic)
# What may stand where a class declares one of these: callers are not strict about numbers, and torch isn't either.
_KINDS: dict[Any, tuple[type, ...]] = {
    int: _NUMBER, float: _NUMBER, bool: (*_NUMBER, type(None)), str: (str,), tuple: (tuple, list),
}  # fmt: skip


def refuse_wrong_kinds(made: nn.Module) -> None:
    """Refuse a layer with an attribute of another kind than its class declares, where that kind is a plain one.

    Raises:
        FileRefusedError: there is one.
    """
    for base in type(made).__mro__:
        for name, declared in vars(base).get("__annotations__", {}).items():
            value = vars(made).get(name)
            wrong = declared in _TENSORS and not isinstance(value, Tensor | None)
            if wrong or (name in vars(made) and not isinstance(value, _kinds(base, name))):
                raise _wrong(made, name)
        for name in vars(base).get("__constants__", ()) if base.__module__.startswith(_TORCH) else ():
            if isinstance(vars(made).get(name), Tensor | nn.Module | np.ndarray):
                raise _wrong(made, name)
    if isinstance(made, nn.RNNBase):
        _refuse_wrong_list(made)
    if isinstance(made, Variational):
        _refuse_lacking(made)


def _refuse_lacking(made: Variational) -> None:
    """A variational layer has all that its classes say they have: its plans, reports and KL ask for it."""
    if not isinstance(vars(made).get("_settings"), Settings):
        raise FileRefusedError(f"has a {type(made).__name__} without settings; {SHORT}")
    wanted = {name for base in type(made).__mro__ for name in vars(base).get("__constants__", ())}
    wanted |= {"bias"} if isinstance(made, _WITH_BIAS) else set()
    wanted |= {str(name) for name in pytree.tree_leaves(vars(made).get("_all_weights", ()))}
    for name in sorted({*wanted, "_reached"}):
        if not hasattr(made, name):
            raise FileRefusedError(f"has a {type(made).__name__} without its {name}; {SHORT}")


def _wrong(made: nn.Module, name: str) -> FileRefusedError:
    kind = type(vars(made)[name]).__name__
    return FileRefusedError(f"has a {type(made).__name__} whose {name} is a {kind}; {SHORT}")


def refuse_missing_parameters(made: nn.Module) -> None:
    """Refuse a layer of torch's that lacks what its class declares as a Tensor, and never as None.

    Raises:
        FileRefusedError: it is neither there, nor computed by something else; or it has other dimensions than any.
    """
    for name in _declared_tensors(made):
        held = [table.get(name) for table in (vars(made), made._parameters, made._buffers)]
        if all(value is None for value in held):
            raise FileRefusedError(f"is a {type(made).__name__} without its {name}; {SHORT}")
    for name, value in made._parameters.items():
        least = _RANKS.get(type(made), 1) if name.endswith("weight") else 1
        if type(made).__module__.startswith(_TORCH) and type(value) is Parameter and value.dim() < least:
            raise FileRefusedError(f"is a {type(made).__name__} whose {name} has {value.dim()} dimensions; {SHORT}")


def _declared_tensors(made: nn.Module) -> Iterator[str]:
    if "parametrizations" in made._modules:
        return
    for base in type(made).__mro__:
        if not base.__module__.startswith(_TORCH):
            continue
        for name, declared in vars(base).get("__annotations__", {}).items():
            computed = isinstance(getattr(type(made), name, None), property)
            if declared in _TENSORS and not computed:
                yield name


def _refuse_wrong_list(made: nn.RNNBase) -> None:
    """A recurrent layer's list of its weights is that of their names."""
    names, weights = vars(made).get("_flat_weights_names"), vars(made).get("_flat_weights")
    listed = isinstance(names, list) and isinstance(weights, list) and len(names) == len(weights)
    if weights is not None and not listed:
        raise FileRefusedError(f"has a {type(made).__name__} whose weights have other names; {SHORT}")


@functools.cache
def _kinds(base: Any, name: str) -> tuple[type, ...]:
    """The kinds of value that may stand in an attribute; any, where the class is not torch's or ours, or leaves it."""
    anything: tuple[type, ...] = (object,)
    if not base.__module__.startswith((_TORCH, "bayesify.")):
        return anything
    try:
        declared = typing.get_type_hints(base)[name]
    except (NameError, TypeError, KeyError):
        return anything
    return _KINDS.get(typing.get_origin(declared) or declared, anything)


_TORCH = "torch.nn.modules."
_WITH_BIAS = (nn.Linear, nn.Bilinear, nn.modules.conv._ConvNd)  # a Parameter, or registered as None
_RANKS: dict[type, int] = {nn.Linear: 2, nn.Bilinear: 3, nn.Embedding: 2, nn.EmbeddingBag: 2}
