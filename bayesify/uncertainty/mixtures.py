"""Mixtures of normal distributions with equal weights: what a regression predicts over its draws."""

from __future__ import annotations

import torch
from torch import Tensor

_HALVINGS = 60  # of an interval that holds the quantile: more than float32 can tell apart


def mixture_quantile(means: Tensor, variances: Tensor, q: float) -> Tensor:
    """The q-quantile of (1/S) Σₛ Normal(meanₛ, varianceₛ), elementwise, by bisection of its distribution function.

    Args:
        means: (S, *shape).
        variances: (S, *shape), or what broadcasts to it; zero is a point mass.
    """
    stds = variances.clamp_min(torch.finfo(means.dtype).tiny).sqrt().expand_as(means)
    z = torch.special.ndtri(torch.tensor(q, dtype=means.dtype, device=means.device))
    quantiles = means + z * stds  # of each part; the mixture's lies between the lowest and the highest of them
    low, high = quantiles.amin(0), quantiles.amax(0)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        below: Tensor = torch.special.ndtr((middle - means) / stds).mean(0) < q
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return torch.lerp(low, high, 0.5)
