"""A posterior that is diagonal in other coordinates than the weights: those of the columns of a basis V.

Row k of the weight is mean_k + V (std_k∘eps), its covariance V diag(std_k²) Vᵀ, and std_k is what the scale parameter
gives. So x Wᵀ has the noise of (x V) times independent weights: Flipout's signs go there, LRT is exact. The KL of an
isotropic prior is that of independent weights, since V is orthogonal.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..estimators.precision import widened
from ..estimators.products import Product
from .layer_kinds import fan_in


def has_basis(layer: nn.Module, name: str) -> bool:
    """Whether the noise of this Parameter is independent in coordinates of its own."""
    return f"{name}_basis" in layer._buffers


def start_along(layer: Any, name: str, basis: Tensor) -> None:
    """Put the basis, and the std where it starts: by the same rule, for the mean's coordinates along it."""
    put_basis(layer, name, basis)
    mean, settings = widened(layer.mean_of(name).detach()), layer._settings
    scale = settings.posterior.start(mean @ basis.to(mean), fan_in(layer, name, settings))
    layer.scale_of(name).data.copy_(scale)


def put_basis(layer: nn.Module, name: str, basis: Tensor) -> None:
    """From now on the noise is independent along the columns of `basis`: (inputs, inputs), orthogonal."""
    drop_basis(layer)
    layer.register_buffer(f"{name}_basis", basis)


def drop_basis(layer: nn.Module) -> None:
    """From now on the noise is independent in each weight."""
    for name in [name for name in layer._buffers if name.endswith("_basis")]:
        del layer._buffers[name]


def turned(layer: nn.Module, name: str, deviation: Tensor) -> Tensor:
    """A deviation from the mean, (outputs, inputs) in the basis's coordinates, as one of the weights."""
    basis = layer._buffers.get(f"{name}_basis")
    return deviation if basis is None else deviation @ basis.to(deviation).T


def multiply_in_basis(
    layer: Any, product: Product, inputs: list[Tensor], mean: Tensor, std: Tensor, bias: Tensor | None,
    bias_std: Tensor | None, *, batch_dim: int,
) -> Tensor:  # fmt: skip
    """y = x·mean + the noise of (x V)·(std∘eps), by the layer's estimator."""
    x = inputs[0]
    coordinates = x @ layer.weight_basis.to(x)
    no_bias = None if bias is None else torch.zeros_like(bias)
    spread: Tensor = layer.estimate(
        product, [coordinates], torch.zeros_like(mean), std, no_bias, bias_std, batch_dim=batch_dim
    )
    return product(inputs, mean, bias) + spread
