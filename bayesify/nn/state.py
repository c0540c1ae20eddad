"""The tensors that make a plain layer variational: which there are, and where they start."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import Parameter, UninitializedBuffer, UninitializedParameter, is_lazy

from ..posterior import SMALLEST_STD, widened
from ..prior import Normal
from .settings import Settings

MEANS = ("weight", "bias")
SUFFIXES = ("rho", "log_alpha", "prior_mean", "prior_std")
NAMES = tuple(f"{name}_{suffix}" for name in MEANS for suffix in SUFFIXES)


def posterior_tensors(layer: nn.Module, settings: Settings) -> dict[str, Tensor]:
    """The parameters and buffers to add to `layer`, by name, for settled settings. The layer is not changed.

    They have their mean's shape, dtype and device, and are uninitialized where it is; scales require grad as it does.
    """
    names = MEANS if settings.bias == "variational" else MEANS[:1]
    means = {name: layer._parameters[name] for name in names if layer._parameters.get(name) is not None}
    tensors: dict[str, Tensor] = {}
    for name, mean in means.items():
        assert mean is not None
        tensors |= _uninitialized(name, mean, settings) if is_lazy(mean) else _initial(layer, name, mean, settings)
    return tensors


def fan_in(layer: Any) -> int:
    """How many weights enter one output of the layer, transposed and grouped convolutions included."""
    shape = layer.weight.shape
    if isinstance(layer, nn.modules.conv._ConvTransposeNd):
        return int(shape[0] // layer.groups * math.prod(shape[2:]))
    return math.prod(shape[1:])


def _names(name: str, settings: Settings) -> tuple[str, list[str]]:
    prior = settings.prior
    buffers = []
    if isinstance(prior, Normal) and prior.mean == "pretrained":
        buffers.append(f"{name}_prior_mean")
    if isinstance(prior, Normal) and prior.keeps_std:
        buffers.append(f"{name}_prior_std")
    return f"{name}_{settings.posterior.scale_name}", buffers


def _initial(layer: nn.Module, name: str, mean: Parameter, settings: Settings) -> dict[str, Tensor]:
    scale_name, buffers = _names(name, settings)
    with torch.no_grad():
        scale = settings.posterior.start(mean, fan_in(layer))
        tensors: dict[str, Tensor] = {scale_name: Parameter(scale, requires_grad=mean.requires_grad)}
        for buffer in buffers:
            is_mean = buffer.endswith("mean")
            tensors[buffer] = mean.detach().clone() if is_mean else _prior_std(mean, fan_in(layer), settings)
    return tensors


def _prior_std(mean: Tensor, fan_in: int, settings: Settings) -> Tensor:
    assert isinstance(settings.prior, Normal)
    std = settings.prior.std.std(widened(mean), fan_in)
    assert isinstance(std, Tensor)
    return std.clamp_min(SMALLEST_STD).to(mean.dtype)


def _uninitialized(name: str, mean: Parameter, settings: Settings) -> dict[str, Tensor]:
    scale_name, buffers = _names(name, settings)
    where: dict[str, Any] = {"device": mean.device, "dtype": mean.dtype}
    scale = UninitializedParameter(requires_grad=mean.requires_grad, **where)
    return {scale_name: scale, **{buffer: LazyBuffer(requires_grad=False, **where) for buffer in buffers}}


class LazyBuffer(UninitializedBuffer):
    """torch's own cannot be deep-copied; this one can, as an uninitialized Parameter can."""

    def __deepcopy__(self, memo: dict[int, Any]) -> LazyBuffer:
        where: dict[str, Any] = {"device": self.data.device, "dtype": self.data.dtype}
        copied: LazyBuffer = memo.setdefault(id(self), LazyBuffer(requires_grad=self.requires_grad, **where))
        return copied
