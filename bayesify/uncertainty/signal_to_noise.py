"""How far each weight's posterior mean is from zero, in its posterior's stds: |mean|/std (Graves 2011).

Where the loss is quadratic around the mean, with the curvature 1/std² that a fitted posterior has, to remove a weight
costs (|mean|/std)²/2 nats of the training data's likelihood, and spares its noise, which costs half a nat. So a weight
whose signal is no more than its noise costs nothing to remove.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..distributions.posterior import SMALLEST_STD
from ..estimators.precision import widened
from ..nn.base import Variational


@torch.no_grad()
def signal_to_noise(layer: Variational, name: str) -> Tensor:
    """|mean|/std of every element of `weight` or `bias`, in float32 or better: zero where pruning masks it."""
    mean, std = widened(layer.mean_of(name)), marginal_std(layer, name)
    return mean.abs() / std.clamp_min(SMALLEST_STD)


@torch.no_grad()
def marginal_std(layer: Variational, name: str) -> Tensor:
    """The std of every element, in float32 or better; of a posterior in other axes, that of the weight itself.

    The covariance of a row is V diag(std²) Vᵀ (see `nn/basis.py`), and its diagonal Σₖ Vⱼₖ² stdₖ².
    """
    std = widened(layer.std_of(name))
    basis = layer._buffers.get(f"{name}_basis")
    return std if basis is None else (std.square() @ basis.to(std).square().T).sqrt()
