"""Dtypes: what is computed in float32 or better, and what autocast does to the arguments of a product."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor


def autocasted(*tensors: Tensor | None) -> list[Any]:
    """What autocast does to the arguments of a product: the backward pass runs outside of it and must see one dtype."""
    first = tensors[0] if tensors[0] is not None else next(tensor for tensor in tensors if tensor is not None)
    if not is_autocasting(first):
        return list(tensors)
    dtype = torch.get_autocast_dtype(first.device.type)
    return [tensor if tensor is None or tensor.dtype is torch.float64 else tensor.to(dtype) for tensor in tensors]


def is_autocasting(tensor: Tensor) -> bool:
    """Whether autocast is on for the tensor's device; torch knows none on meta."""
    device = tensor.device.type
    return device != "meta" and torch.is_autocast_enabled(device)


def no_autocast(tensor: Tensor) -> AbstractContextManager[Any]:
    """Autocast switched off on the tensor's device."""
    device = tensor.device.type
    if device == "meta" or not (torch.compiler.is_compiling() or torch.is_autocast_enabled(device)):
        return _AS_IT_IS  # torch knows no autocast on meta
    return torch.autocast(device, enabled=False)


_AS_IT_IS = nullcontext()


def without_autocast(backward: Callable[..., Any]) -> Callable[..., Any]:
    """A backward called inside autocast must not round what forward kept wide: squares overflow in half precision."""

    @functools.wraps(backward)
    def wide(ctx: Any, grad: Tensor, *others: Any) -> Any:
        with no_autocast(grad):
            return backward(ctx, grad, *others)

    return wide


def widened(tensor: Tensor) -> Tensor:
    """The tensor in float32, or as it is where that is already as precise."""
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()
