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
    rho, other = rho_of(layer, name), mean is not None and mean is not layer._parameters.get(name)
    if rho is None or other or held_draws(layer) is not None:
        return layer.spread_of(name, mean)  # type: ignore[no-any-return]
    return SoftplusStd(rho)


def rho_of(layer: Any, name: str) -> Tensor | None:
    """The rho that an estimator can compute the std from; None where that takes more, or the mean is computed too."""
    parameters = layer._parameters
    own, rho = parameters.get(name), parameters.get(f"{name}_rho")  # only an additive posterior has a rho
    if own is None or rho is None or not _fit(own, rho) or "_replaced_means" in layer.__dict__:
        return None
    return rho  # type: ignore[no-any-return]


def own_or_computed(layer: Any, name: str) -> Any:
    """What reading the attribute gives: the Parameter itself, nearly always, and then at a fifth of the cost."""
    own: Tensor | None = layer._parameters.get(name)
    return getattr(layer, name) if own is None or draws_of_forward() else own


def _fit(own: Tensor, scale: Tensor) -> bool:
    plain = type(own) in (Parameter, Tensor)  # and no sharded or fake one
    return plain and own.shape == scale.shape and own.dtype == scale.dtype
