"""The KL of one layer's posterior against its prior, at the present parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.lazy import LazyModuleMixin

from ..distributions.normal_kl import NormalTerm, normal_kls
from ..distributions.prior import LogUniform, ScaleMixture, log_uniform_kl, normal_kl, scale_mixture_kl
from ..distributions.scale import Scale
from ..errors import UninitializedLayerError
from ..estimators.precision import widened
from .layer_kinds import fan_in
from .replaced_means import refuse_resized
from .switches import unrouted


def summed(parts: Sequence[Tensor | NormalTerm]) -> Tensor:
    """The sum of what `kl_part_of` gave for some posteriors: 0-dim, in float32 or better, on the first one's device."""
    together = [part for part in parts if isinstance(part, NormalTerm)]
    values = [part for part in parts if isinstance(part, Tensor)]
    if together:
        with unrouted():
            values.append(normal_kls(together))
    first = parts[0].mean if isinstance(parts[0], NormalTerm) else parts[0]
    return values[0] if len(values) == 1 else torch.stack([value.to(first.device) for value in values]).sum()


def kl_part_of(layer: Any, name: str) -> Tensor | NormalTerm:
    """The KL of one posterior in nats; or, where many are computed in one pass, what that pass needs.

    Raises:
        UninitializedLayerError: the layer is lazy and has not seen data, or is on the meta device.
        ShapeError: the mean was resized after conversion.
        StalePosteriorError: the mean was replaced after conversion by one of other values.
    """
    layer.refuse_replaced_means()
    with unrouted():
        return _part(layer, name)


def _part(layer: Any, name: str) -> Tensor | NormalTerm:
    mean: Any = layer.mean_of(name)
    scale: Any = layer.scale_of(name)
    if isinstance(layer, LazyModuleMixin):
        raise UninitializedLayerError("has not seen data yet, so that it has no KL: run one batch first")
    if scale.is_meta or mean.is_meta:
        if "_hf_hook" in vars(layer):
            raise UninitializedLayerError(
                "was offloaded by accelerate and has its weights only while it runs: take its KL before that, or after "
                "accelerate.hooks.remove_hook_from_module(model, recurse=True), which loads them"
            )
        raise UninitializedLayerError(
            "is on the meta device: load its weights, then call bayesify.reset_posterior(model)"
        )
    refuse_resized(name, mean, scale)
    mean, scale = layer.counted(name, _whole(mean)), layer.counted(name, _whole(scale))
    prior = layer._settings.prior
    if isinstance(prior, LogUniform):
        return log_uniform_kl(scale)
    posterior, mean, scale = layer._settings.posterior, widened(mean), widened(scale)
    if isinstance(prior, ScaleMixture):
        return scale_mixture_kl(mean, posterior.std(mean, scale), prior)
    if posterior.parameterization == "additive":
        return NormalTerm(mean, scale, *_prior_parts(layer, name))
    return normal_kl(mean, posterior.std(mean, scale), *normal_prior_of(layer, name))


def normal_prior_of(layer: Any, name: str) -> tuple[Tensor | float, Tensor | float]:
    """Mean and std of the normal prior over `weight` or `bias`: floats where they are the same for all elements."""
    mean, std, fan_in = _prior_parts(layer, name)
    return mean, std.std(mean, fan_in) if isinstance(std, Scale) else std  # type: ignore[arg-type]


def _prior_parts(layer: Any, name: str) -> tuple[Tensor | float, Tensor | float | Scale, int]:
    """The prior's mean, its std or the rule by which that follows from the mean, and the fan-in."""
    prior: Any = layer._settings.prior
    mean, std = layer._buffers.get(f"{name}_prior_mean"), layer._buffers.get(f"{name}_prior_std")
    prior_mean = prior.mean if mean is None else widened(layer.counted(name, mean))
    if std is not None:
        return prior_mean, widened(layer.counted(name, std)), 1
    if prior.std.kind == "constant":
        return prior_mean, prior.std.value, 1
    width = fan_in(layer, name)
    return prior_mean, prior.std if prior.std.kind == "relative" else prior.std.std(prior_mean, width), width


def _whole(tensor: Tensor) -> Tensor:
    """A Parameter that FSDP2 sharded, gathered; its gradient goes back to the shards."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
