"""The posterior q(w) = Normal(mean, std²) of one weight tensor: how its std is parameterized and where it starts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..estimators.precision import widened
from .scale import Scale, magnitude

Parameterization = Literal["additive", "multiplicative"]
Basis = Literal["weights", "inputs"]
NoiseDtype = Literal["weights", "bfloat16"]

SMALLEST_STD = torch.finfo(torch.float32).tiny
RELATIVE_FLOOR = 1e-8  # under what follows a weight on its way through zero: a relative std, or a prior's
DEPTH_BUDGET = 0.4  # all layers' relative stds together, under `auto`; docs/defaults.md has the measurements
MOST_RELATIVE = 0.2  # that of one layer


@dataclass(frozen=True)
class Posterior:
    """How q(w) is parameterized and where its std starts.

    Attributes:
        parameterization: `additive`, std = softplus(rho); or `multiplicative`, std = |mean|·sqrt(alpha), with
            log(alpha) the parameter (Kingma et al. 2015, section 3; Molchanov et al. 2017, section 3.2).
        init_std: where std starts; None is `auto`, which a plan settles by the network's depth.
        basis: what is independent: the weights, or their coordinates along the principal axes of a layer's inputs.
        noise_dtype: in what layers compute the product with the noise: as the weights are, or in bfloat16.
    """

    parameterization: Parameterization = "additive"
    init_std: Scale | None = None
    basis: Basis = "weights"
    noise_dtype: NoiseDtype = "weights"

    def __str__(self) -> str:
        along = ", along its inputs' axes" if self.basis == "inputs" else ""
        narrow = f", noise in {self.noise_dtype}" if self.noise_dtype != "weights" else ""
        return f"{self.parameterization}, std {self.init_std or 'auto'}{along}{narrow}"

    def to_dict(self) -> dict[str, Any]:
        """As a policy writes it."""
        return {
            "parameterization": self.parameterization,
            "init_std": self.init_std.to_dict() if self.init_std else "auto",
            **({"basis": self.basis} if self.basis != "weights" else {}),
            **({"noise_dtype": self.noise_dtype} if self.noise_dtype != "weights" else {}),
        }

    @property
    def narrow_dtype(self) -> torch.dtype | None:
        """What the product with the noise is computed in, if not in the weights' dtype."""
        return torch.bfloat16 if self.noise_dtype == "bfloat16" else None

    @property
    def scale_name(self) -> str:
        """What the scale parameter's name ends in: `weight_rho` or `weight_log_alpha`."""
        return "rho" if self.parameterization == "additive" else "log_alpha"

    def for_depth(self, layers: int) -> Posterior:
        """The same posterior with `auto` settled for a network that has `layers` converted layers.

        Relative noise adds up over depth, so the layers share one budget: 0.4/layers of |w| each, but at most 0.2.
        """
        if self.init_std is not None:
            return self
        relative = min(DEPTH_BUDGET / max(layers, 1), MOST_RELATIVE)
        return replace(self, init_std=Scale("relative", relative, floor=0.1))

    def start(self, mean: Tensor, fan_in: int) -> Tensor:
        """The scale parameter's initial value, of `mean`'s shape and device, in float32 or better.

        In bfloat16 it would stand still: near -6 its numbers are 0.03 apart, and a step of Adam is 0.001.
        """
        posterior = self.for_depth(1)
        assert posterior.init_std is not None
        wide = widened(mean.detach())
        std = posterior.init_std.std(wide, fan_in)
        std = torch.full_like(wide, std) if isinstance(std, float) else std
        if self.parameterization == "additive":
            return posterior.scale_of(std.clamp_min(SMALLEST_STD), wide)
        return posterior.scale_of(std.clamp_min(RELATIVE_FLOOR), magnitude(wide, fan_in, floor=1e-3))

    def std(self, mean: Tensor, scale: Tensor) -> Tensor:
        """The std from the scale parameter (`rho` or `log_alpha`), elementwise and differentiable.

        A multiplicative one is at least 1e-8: nearer to a weight of zero its gradient would explode.
        """
        if self.parameterization == "additive":
            return F.softplus(scale)
        return (mean.abs() * torch.exp(scale / 2)).clamp_min(RELATIVE_FLOOR)

    def scale_of(self, std: Tensor, mean: Tensor) -> Tensor:
        """The scale parameter that gives `std`: the inverse of `std()`.

        softplus⁻¹(std) = std + log(1 - exp(-std)); log(alpha) = 2·log(std/|mean|).
        """
        if self.parameterization == "additive":
            return std + torch.log(-torch.expm1(-std))
        return 2 * torch.log(std / mean.abs().clamp_min(RELATIVE_FLOOR))
