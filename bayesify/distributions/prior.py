"""Priors p(w) over one weight tensor and KL(q‖p) in nats, summed over its elements.

Every `kl` takes the posterior's mean and std in float32 or float64 and returns a 0-dim tensor, differentiable in both.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..estimators import noise
from ..estimators.precision import widened
from .scale import Scale


@dataclass(frozen=True)
class Normal:
    """p(w) = Normal(mean, std²), elementwise.

    Attributes:
        mean: a number; or `pretrained`: the weights as they were at conversion, kept in a buffer; or `auto`, which a
            plan settles by the network's depth, with the std.
        std: a rule; `relative` and `init_std` refer to the weights as they were at conversion.
    """

    mean: float | Literal["pretrained", "auto"] = "pretrained"
    std: Scale = Scale("init_std", 3.0)

    def __str__(self) -> str:
        if self.mean == "auto":
            return "auto"
        centre = "w₀" if self.mean == "pretrained" else f"{self.mean:.4g}"
        return f"N({centre}, {self.std})"

    def to_dict(self) -> dict[str, Any]:
        """As a policy writes it."""
        std = {} if self.mean == "auto" else {"std": self.std.to_dict()}
        return {"family": "normal", "mean": self.mean, **std}

    def settled(self, init_std: Scale, layers: int) -> Normal:
        """The same prior without `auto` and `init_std`, for a network of `layers` converted layers.

        Args:
            init_std: the rule that the posterior's initial std follows.
        """
        if self.mean == "auto":
            return (SHALLOW_PRIOR if layers <= SHALLOW else Normal()).settled(init_std, layers)
        return Normal(self.mean, init_std.times(self.std.value)) if self.std.kind == "init_std" else self

    @property
    def keeps_std(self) -> bool:
        """Whether the std must be stored: it depends on the initial weights and they are not kept as the mean."""
        return self.std.kind == "relative" and self.mean != "pretrained"


SHALLOW = 6  # layers that convert: up to there `auto` is the next line, beyond it around the weights; docs/defaults.md
SHALLOW_PRIOR = Normal(0.0, Scale("fan_in", 5.0))


@dataclass(frozen=True)
class ScaleMixture:
    """p(w) = pi·Normal(0, std1²) + (1 - pi)·Normal(0, std2²), elementwise (Blundell et al. 2015, eq. 7).

    KL(q‖p) has no closed form: each evaluation is a fresh, unbiased Monte Carlo estimate from one weight draw made on
    the spot, with the entropy of q exact: -H(q) - log p(mean + std·eps), eps ~ Normal(0, 1).
    """

    pi: float = 0.5
    std1: float = 1.0
    std2: float = math.exp(-6)

    def __str__(self) -> str:
        return f"{self.pi:.3g}·N(0, {self.std1:.3g}) + {1 - self.pi:.3g}·N(0, {self.std2:.3g})"

    def to_dict(self) -> dict[str, Any]:
        """As a policy writes it."""
        return {"family": "scale_mixture", "pi": self.pi, "std1": self.std1, "std2": self.std2}


@dataclass(frozen=True)
class LogUniform:
    """p(log|w|) = const, for the multiplicative posterior; KL depends on alpha = std²/mean² only.

    KL is the approximation of Molchanov et al. 2017, eq. 14, with its constant chosen so that KL → 0 as alpha → ∞.
    """

    def __str__(self) -> str:
        return "log-uniform"

    def to_dict(self) -> dict[str, Any]:
        """As a policy writes it."""
        return {"family": "log_uniform"}


Prior = Normal | ScaleMixture | LogUniform


def normal_kl(mean: Tensor, std: Tensor, prior_mean: Tensor | float, prior_std: Tensor | float) -> Tensor:
    """Σ KL(N(mean, std²) ‖ N(prior_mean, prior_std²)) in nats.

    Per element: log(prior_std/std) + (std² + (mean - prior_mean)²) / (2·prior_std²) - 1/2.
    """
    ratio = std / prior_std
    shift = shifted(mean, prior_mean) / prior_std
    return (0.5 * (ratio.square() + shift.square() - 1) - _log_ratio(std, prior_std)).sum()


def shifted(mean: Tensor, prior_mean: Tensor | float) -> Tensor:
    """mean - prior_mean; the mean itself where the prior's is 0, of which a compiler would keep a copy."""
    return mean if isinstance(prior_mean, float | int) and prior_mean == 0 else mean - prior_mean


def _log_ratio(std: Tensor, prior_std: Tensor | float) -> Tensor:
    """log(std/prior_std). Near one, the logarithm of the ratio has no rounding error; near zero the ratio has one."""
    near_zero = std / prior_std < _SMALL
    ratio = torch.where(near_zero, std * (1 / _SMALL), std) / prior_std
    return torch.log(ratio) + torch.where(near_zero, math.log(_SMALL), 0.0)


_SMALL = 1e-30


def scale_mixture_kl(mean: Tensor, std: Tensor, prior: ScaleMixture) -> Tensor:
    """One unbiased Monte Carlo estimate of Σ KL(q‖p) in nats for the scale mixture, from a fresh weight draw."""
    weight = mean + std * noise.normal_like(mean)
    wide = _normal_log_density(weight, prior.std1) + math.log(prior.pi)
    narrow = _normal_log_density(weight, prior.std2) + math.log1p(-prior.pi)
    negative_entropy = -torch.log(std) - 0.5 * math.log(2 * math.pi * math.e)
    return (negative_entropy - torch.logaddexp(wide, narrow)).sum()


def log_uniform_kl(log_alpha: Tensor) -> Tensor:
    """Σ KL(q‖log-uniform) in nats (Molchanov et al. 2017, eq. 14).

    Per element: k1 - k1·sigmoid(k2 + k3·log alpha) + log(1 + 1/alpha)/2, with k1 = 0.63576, k2 = 1.87320, k3 = 1.48695.
    """
    log_alpha = widened(log_alpha)
    k1, k2, k3 = 0.63576, 1.87320, 1.48695
    return (k1 * torch.sigmoid(-(k2 + k3 * log_alpha)) + 0.5 * F.softplus(-log_alpha)).sum()


def _normal_log_density(value: Tensor, std: float) -> Tensor:
    return -0.5 * (value / std).square() - math.log(std) - 0.5 * math.log(2 * math.pi)
