"""The tensors that make a plain layer variational: which there are, and where they start."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import Parameter, UninitializedBuffer, UninitializedParameter, is_lazy

from ..posterior import SMALLEST_STD, widened
from ..prior import Normal
from .computed import sources, value
from .part import Part
from .settings import Settings

SUFFIXES = ("rho", "log_alpha", "prior_mean", "prior_std")
_ATTENTION = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


def weight_names(layer: nn.Module, settings: Settings | None = None) -> list[str]:
    """The layer's own Parameters that get a posterior: its weight matrices, or those that its settings name."""
    settings = settings or vars(layer).get("_settings")
    if settings is not None and settings.weights:
        return [name for name, _ in settings.weights]
    return [name for name in weight_slots(layer) if sources(layer, name)]


def bias_names(layer: nn.Module) -> list[str]:
    """The layer's own Parameters that get a posterior too where biases are variational."""
    return [name for name in bias_slots(layer) if sources(layer, name)]


def weight_slots(layer: nn.Module) -> list[str]:
    """Where the layer's kind keeps its weight matrices, whether or not a Parameter is there."""
    if isinstance(layer, nn.MultiheadAttention):
        return list(_ATTENTION)
    if isinstance(layer, Part):
        return list(dict(layer.weights))
    if isinstance(layer, nn.RNNBase):
        return [name for name in layer._flat_weights_names if name.startswith("weight")]
    return ["weight_ih", "weight_hh"] if isinstance(layer, nn.RNNCellBase) else ["weight"]


def bias_slots(layer: nn.Module) -> list[str]:
    """Where the layer's kind keeps its biases, whether or not a Parameter is there."""
    if isinstance(layer, nn.MultiheadAttention):
        return ["in_proj_bias"]
    if isinstance(layer, Part | nn.Embedding | nn.EmbeddingBag):
        return []  # a part's products take biases as they are
    if isinstance(layer, nn.RNNBase):
        return [name for name in layer._flat_weights_names if name.startswith("bias")]
    return ["bias_ih", "bias_hh"] if isinstance(layer, nn.RNNCellBase) else ["bias"]


def added_names(layer: nn.Module) -> list[str]:
    """What a posterior over any of the layer's Parameters may be called."""
    return [f"{name}_{suffix}" for name in (*weight_names(layer), *bias_names(layer)) for suffix in SUFFIXES]


def mean_of(added: str) -> str:
    """The name of the Parameter that an added name belongs to: `weight` for `weight_prior_mean`."""
    return next(added.removesuffix(f"_{suffix}") for suffix in SUFFIXES if added.endswith(f"_{suffix}"))


def posterior_tensors(layer: nn.Module, settings: Settings) -> dict[str, Tensor]:
    """The parameters and buffers to add to `layer`, by name, for settled settings. The layer is not changed.

    They have their mean's shape, dtype and device, and are uninitialized where it is; scales require grad as it does.
    """
    tensors: dict[str, Tensor] = {}
    biases = bias_names(layer) if settings.bias == "variational" and not settings.weights else []
    for name in (*weight_names(layer, settings), *biases):
        mean = value(layer, name)
        assert mean is not None
        tensors |= _uninitialized(name, mean, settings) if is_lazy(mean) else _initial(layer, name, mean, settings)
    return tensors


def fan_in(layer: Any, name: str, settings: Settings | None = None) -> int:
    """How many weights of the matrix `name` enter one output; of a bias, those of the matrix that it goes with."""
    settings = settings or vars(layer).get("_settings")
    if settings is not None and settings.weights:
        return int(dict(settings.weights)[name])
    if isinstance(layer, Part):
        return int(dict(layer.weights)[name])
    if isinstance(layer, nn.Embedding | nn.EmbeddingBag):
        return 1  # an output is one element of the table
    names, matrix = weight_names(layer), name.replace("bias", "weight")
    shape = _shape(layer, matrix if matrix in names else names[0])
    if isinstance(layer, nn.modules.conv._ConvTransposeNd):
        return int(shape[0] // layer.groups * math.prod(shape[2:]))
    return math.prod(shape[1:])


def _shape(layer: nn.Module, name: str) -> torch.Size:
    """Without computing it, where the posterior has its shape."""
    like: Tensor | None = layer._parameters.get(name)
    settings: Settings | None = vars(layer).get("_settings")
    if like is None and settings is not None:
        like = layer._parameters.get(f"{name}_{settings.posterior.scale_name}")
    like = value(layer, name) if like is None else like
    assert like is not None
    return like.shape


def _names(name: str, settings: Settings) -> tuple[str, list[str]]:
    prior = settings.prior
    buffers = []
    if isinstance(prior, Normal) and prior.mean == "pretrained":
        buffers.append(f"{name}_prior_mean")
    if isinstance(prior, Normal) and prior.keeps_std:
        buffers.append(f"{name}_prior_std")
    return f"{name}_{settings.posterior.scale_name}", buffers


def _initial(layer: nn.Module, name: str, mean: Tensor, settings: Settings) -> dict[str, Tensor]:
    scale_name, buffers = _names(name, settings)
    with torch.no_grad():
        scale = settings.posterior.start(mean, fan_in(layer, name, settings))
        trains = any(each.requires_grad for each in sources(layer, name))
        tensors: dict[str, Tensor] = {scale_name: Parameter(scale, requires_grad=trains)}
        for buffer in buffers:
            is_mean = buffer.endswith("mean")
            width = fan_in(layer, name, settings)
            tensors[buffer] = mean.detach().clone() if is_mean else _prior_std(mean, width, settings)
    return tensors


def _prior_std(mean: Tensor, fan_in: int, settings: Settings) -> Tensor:
    assert isinstance(settings.prior, Normal)
    std = settings.prior.std.std(widened(mean), fan_in)
    assert isinstance(std, Tensor)
    return std.clamp_min(SMALLEST_STD).to(mean.dtype)


def _uninitialized(name: str, mean: Tensor, settings: Settings) -> dict[str, Tensor]:
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
