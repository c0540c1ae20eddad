"""The tensors that make a plain layer variational: which there are, and where they start."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import Parameter, UninitializedBuffer, UninitializedParameter, is_lazy

from ..distributions.posterior import RELATIVE_FLOOR
from ..distributions.prior import Normal
from ..estimators.precision import widened
from .layer_kinds import bias_names, fan_in, weight_names
from .parametrized_weights import sources, value
from .settings import Settings

SUFFIXES = ("rho", "log_alpha", "prior_mean", "prior_std", "basis")


def added_names(layer: nn.Module) -> list[str]:
    """What a posterior over any of the layer's Parameters may be called."""
    return [f"{name}_{suffix}" for name in (*weight_names(layer), *bias_names(layer)) for suffix in SUFFIXES]


def mean_of(added: str) -> str:
    """The name of the Parameter that an added name belongs to: `weight` for `weight_prior_mean`."""
    return next(added.removesuffix(f"_{suffix}") for suffix in SUFFIXES if added.endswith(f"_{suffix}"))


def save_added(layer: nn.Module, destination: dict[str, Tensor], prefix: str, keep_vars: bool) -> None:
    """Put what a posterior added into a state_dict, where the class's own `_save_to_state_dict` left it out."""
    for name in added_names(layer):
        tensor = layer._parameters.get(name, layer._buffers.get(name))
        if tensor is not None and prefix + name not in destination:
            destination[prefix + name] = tensor if keep_vars else tensor.detach()


def keeping_wide(scales: Sequence[Tensor], move: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The same move or cast of a module's tensors, except that these and their gradients stay at least float32."""
    wide = {id(tensor) for scale in scales for tensor in (scale, scale.grad) if tensor is not None}

    def moved(tensor: Tensor) -> Tensor:
        result = move(tensor)
        narrowed = id(tensor) in wide and result.is_floating_point() and result.dtype.itemsize < 4
        return tensor.to(result.device, torch.float32) if narrowed else result

    return moved


def posterior_tensors(layer: nn.Module, settings: Settings) -> dict[str, Tensor]:
    """The parameters and buffers to add to `layer`, by name, for settled settings. The layer is not changed.

    They have their mean's shape, device and dtype, scales at least float32; they are uninitialized where it is, and
    scales require grad as it does.
    """
    tensors: dict[str, Tensor] = {}
    biases = bias_names(layer) if settings.bias == "variational" and not settings.weights else []
    for name in (*weight_names(layer, settings), *biases):
        mean = value(layer, name)
        assert mean is not None
        tensors |= _uninitialized(name, mean, settings) if is_lazy(mean) else _initial(layer, name, mean, settings)
    return tensors


def _names(name: str, settings: Settings) -> tuple[str, list[str]]:
    prior = settings.prior
    buffers = []
    if isinstance(prior, Normal) and prior.mean == "pretrained":
        buffers.append(f"{name}_prior_mean")
    if isinstance(prior, Normal) and prior.keeps_std:
        buffers.append(f"{name}_prior_std")
    return f"{name}_{settings.posterior.scale_name}", buffers


def _initial(layer: nn.Module, name: str, mean: Tensor, settings: Settings) -> dict[str, Tensor]:
    (scale_name, buffers), width = _names(name, settings), fan_in(layer, name, settings)
    with torch.no_grad():
        scale = settings.posterior.start(mean, width)
        trains = any(source.requires_grad for source in sources(layer, name))
        tensors: dict[str, Tensor] = {scale_name: Parameter(scale, requires_grad=trains)}
        for buffer in buffers:
            is_mean = buffer.endswith("mean")
            tensors[buffer] = mean.detach().clone() if is_mean else _prior_std(mean, width, settings)
    return tensors


def _prior_std(mean: Tensor, fan_in: int, settings: Settings) -> Tensor:
    assert isinstance(settings.prior, Normal)
    std = settings.prior.std.std(widened(mean), fan_in)
    assert isinstance(std, Tensor)
    return std.clamp_min(RELATIVE_FLOOR).to(mean.dtype)


def _uninitialized(name: str, mean: Tensor, settings: Settings) -> dict[str, Tensor]:
    scale_name, buffers = _names(name, settings)
    where: dict[str, Any] = {"device": mean.device, "dtype": mean.dtype}
    wide = mean.dtype if mean.dtype is torch.float64 else torch.float32
    scale = UninitializedParameter(requires_grad=mean.requires_grad, **where | {"dtype": wide})
    return {scale_name: scale, **{buffer: LazyBuffer(requires_grad=False, **where) for buffer in buffers}}


class LazyBuffer(UninitializedBuffer):
    """torch's own cannot be deep-copied; this one can, as an uninitialized Parameter can."""

    def __deepcopy__(self, memo: dict[int, Any]) -> LazyBuffer:
        where: dict[str, Any] = {"device": self.data.device, "dtype": self.data.dtype}
        copied: LazyBuffer = memo.setdefault(id(self), LazyBuffer(requires_grad=self.requires_grad, **where))
        return copied
