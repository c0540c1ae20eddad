"""`fit_std`: a posterior for a network as it is, without training, that knows where the data were not.

The last Linear layer gets the Laplace posterior of a generalized linear model on the features that reach it, diagonal
in their principal axes and not in the weights: with V the eigenvectors of Σₙ wₙ φₙφₙᵀ, the precision of output k along
axis j is Dₖⱼ + δ, Dₖⱼ = Σₙ hₙₖ (φₙᵀV)²ⱼ, hₙₖ the curvature of the NLL in output k, wₙ = Σₖ hₙₖ. It is exact for linear
regression. What lies along axes that the data hardly used is uncertain: a gap in the data is one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from ..distributions.posterior import SMALLEST_STD
from ..distributions.prior import Normal
from ..distributions.scale import Scale
from ..errors import UsageError
from ..nn.base import Variational
from ..nn.basis import put_basis
from ..nn.kl import terms, variational_layers
from ..nn.parametrized_weights import is_computed
from ..nn.posterior_mean import posterior_mean
from ..surgery.reset import refuse_lazy
from .calibration import Calibration
from .curvature import Curvature, curvature
from .held_out import HeldOut, held_out
from .passes import undisturbed
from .prediction import Task
from .seeds import seeded

PRECISIONS = tuple(10.0 ** (step / 3) for step in range(-9, 16))  # δ, from 1e-3 to 1e5
RELATIVE = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2)  # of max(|w|, 0.1·rms): the std of the other layers
FLOOR = 0.1


@dataclass(frozen=True)
class FittedStd:
    """What `fit_std` found.

    Attributes:
        layer: the name of the layer that got a posterior in the axes of its inputs.
        precision: δ, its prior's precision.
        relative: the std of all other weights, as a share of max(|w|, 0.1·rms). 0: as little as there can be.
        nll_before, nll: mean NLL of the validation data in nats, of the mean network and of the fitted one.
    """

    layer: str
    precision: float
    relative: float
    nll_before: float
    nll: float


def fit_std(
    model: nn.Module, loader: Iterable[Any], *, task: Task, validation: Iterable[Any] | None = None,
    noise: str | None = None, output: str | int | None = None, dim: int = -1, samples: int = 16, seed: int = 0,
) -> FittedStd:  # fmt: skip
    """Fit the stds of a converted model to data, its means as they are: no training, one pass over the loader.

    The last Linear layer gets the posterior that this module describes, under an isotropic prior of precision δ. The
    std of all other weights becomes c·max(|w|, 0.1·rms). δ and then c are chosen by the NLL of validation data.

    Args:
        loader: the data that the model was trained on, with targets, as `calibrate` takes them.
        task: as in `calibrate`. Of the layer's output: no softmax, sigmoid or exp may follow it.
        validation: held-out data; without them the loader's, which ask for less noise if they were trained on.
        noise, output, dim, samples, seed: as in `calibrate`. A regression's noise is fitted to the validation data.

    Raises:
        NotVariationalError, UninitializedLayerError: as in `calibrate`.
        UsageError: the model's output is not that of a Linear layer with an additive posterior of its own.
    """
    refuse_lazy(model, "there is no noise to fit")
    name, layer = _last_linear(model)
    blank = Calibration(task, noise=noise, output=output, dim=dim)
    with undisturbed(model, seed):
        data = held_out(model, loader, blank, None)
        judge = data if validation is None else held_out(model, validation, data.blank, None)
        with posterior_mean(model):
            curved = curvature(model, layer, data, judge)
            before = judge.outputs(model, 1)
        put_basis(layer, "weight", curved.basis.to(layer.weight))
        precision = _chosen(model, layer, curved, judge, samples, seed)
        relative, nll = _others(model, layer, judge, samples, seed)
    return FittedStd(name, precision, relative, judge.nll(before), nll)


def _chosen(
    model: nn.Module, layer: Variational, curved: Curvature, judge: HeldOut, samples: int, seed: int
) -> float:
    """The prior's precision by validation NLL, the other layers silent; the layer has its posterior afterwards."""
    _set_others(model, layer, 0.0)

    def nll(precision: float) -> float:
        layer.set_std("weight", (curved.precision + precision).rsqrt())
        with seeded(model, seed):
            return judge.nll(judge.outputs(model, samples))

    best: float = min(PRECISIONS, key=nll)
    layer.set_std("weight", (curved.precision + best).rsqrt())
    prior = layer._settings.prior
    mean = prior.mean if isinstance(prior, Normal) else 0.0
    layer._settings = replace(layer._settings, prior=Normal(mean, Scale("constant", best**-0.5)))
    layer._buffers.pop("weight_prior_std", None)
    return best


def _others(model: nn.Module, layer: Variational, judge: HeldOut, samples: int, seed: int) -> tuple[float, float]:
    def nll(relative: float) -> float:
        _set_others(model, layer, relative)
        with seeded(model, seed):
            return judge.nll(judge.outputs(model, samples))

    nlls = {relative: nll(relative) for relative in RELATIVE}
    best = min(RELATIVE, key=lambda relative: nlls[relative])
    _set_others(model, layer, best)
    return best, nlls[best]


def _set_others(model: nn.Module, layer: Variational, relative: float) -> None:
    for term in terms(model):
        own, name = term.layers[0], term.mean_name
        if own is not layer or name != "weight":
            rule = Scale("relative", relative, FLOOR)
            own.set_std(name, rule.std(own.mean_of(name).detach(), 1) if relative else SMALLEST_STD)  # zero: KL of inf


def _last_linear(model: nn.Module) -> tuple[str, Any]:
    layers = [(name, layer) for name, layer in variational_layers(model) if isinstance(layer, nn.Linear)]
    if not layers:
        raise UsageError(f"{type(model).__name__} has no variational Linear layer whose std could be fitted")
    name, layer = layers[-1]
    tied = any(layer in term.layers and len(term.layers) > 1 for term in terms(model))
    if tied or is_computed(layer, "weight") or layer._settings.posterior.parameterization != "additive":
        raise UsageError(f"the weight of {name!r} is tied, computed or has a multiplicative posterior: none to fit")
    return name, layer
