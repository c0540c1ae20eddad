"""A posterior's std, left to the estimator to compute where it is a function of its own parameter alone."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn.parameter import Parameter

from ..estimators.std_forms import SoftplusStd
from .held_draws import Spread, held_draws
from .switches import draws_of_forward


def late_spread_of(layer: Any, name: str, mean: Tensor | None = None) -> Spread | SoftplusStd:
    """As the layer's `spread_of`; where it can, the estimator computes the std, and again for the gradient."""
    parameters = layer._parameters
    own, scale = parameters.get(name), parameters.get(f"{name}_rho")  # only an additive posterior has a rho
    if own is None or scale is None or (mean is not None and mean is not own) or not fit(own, scale):
        return layer.spread_of(name, mean)  # type: ignore[no-any-return]
    if "_replaced_means" in layer.__dict__ or held_draws(layer) is not None:
        return layer.spread_of(name, mean)  # type: ignore[no-any-return]
    return SoftplusStd(scale)


def own_or_computed(layer: Any, name: str) -> Any:
    """What reading the attribute gives: the Parameter itself, nearly always, and then at a fifth of the cost."""
    own: Tensor | None = layer._parameters.get(name)
    return getattr(layer, name) if own is None or draws_of_forward() else own


def fit(own: Tensor, scale: Tensor) -> bool:
    """Whether a mean and its scale are plain tensors that fit each other."""
    plain = type(own) in (Parameter, Tensor)  # and no sharded or fake one
    return plain and own.shape == scale.shape and own.dtype == scale.dtype
