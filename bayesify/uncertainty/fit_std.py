"""`fit_std`: a posterior for a network as it is, without training, that knows where the data were not.

The last Linear layer gets the Laplace posterior of a generalized linear model on the features that reach it, diagonal
in their principal axes and not in the weights: with V the eigenvectors of Σₙ wₙ φₙφₙᵀ, the precision of output k along
axis j is Dₖⱼ + δ, Dₖⱼ = Σₙ hₙₖ (φₙᵀV)²ⱼ, hₙₖ the curvature of the NLL in output k, wₙ = Σₖ hₙₖ. It is exact for linear
regression. What lies along axes that the data hardly used is uncertain: a gap in the data is one. Other Linear layers
may have the same, with the curvature estimated by backward passes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
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
from ..nn.registry import plain_class
from ..policy.selectors import Candidate, Candidates, SelectorError, compiled, picked
from ..surgery.reset import refuse_lazy
from .calibration import Calibration
from .calls import Call, called
from .curvature import Curvature, curvatures, last_curvature
from .held_out import Comparison, HeldOut, held_out
from .likelihoods import as_good
from .observation_noise import HALVES
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
        layers: the names of the layers that got a posterior in the axes of their inputs.
        precision: δ, their prior's precision.
        relative: the std of all other weights, as a share of max(|w|, 0.1·rms). 0: as little as there can be.
        nll_before, nll: mean NLL of the validation data in nats, of the mean network and of the fitted one.
    """

    layers: tuple[str, ...]
    precision: float
    relative: float
    nll_before: float
    nll: float


def fit_std(
    model: nn.Module, loader: Iterable[Any], *, task: Task, layers: str | Sequence[str] | None = None,
    validation: Iterable[Any] | None = None, noise: str | None = None, output: str | int | None = None, dim: int = -1,
    samples: int = 16, seed: int = 0,
) -> FittedStd:  # fmt: skip
    """Fit the stds of a converted model to data, its means as they are: no training, one pass over the loader.

    The last Linear layer gets the posterior that this module describes, under an isotropic prior of precision δ. The
    std of all other weights becomes c·max(|w|, 0.1·rms). δ and then c are chosen by the NLL of validation data.

    Args:
        loader: the data that the model was trained on, with targets, as `calibrate` takes them.
        task: as in `calibrate`. Of the layer's output: no softmax, sigmoid or exp may follow it.
        layers: selectors, as a policy's targets, of the Linear layers to give that posterior: "**" for all. They cost
            two passes with 8 backward passes each. None: the last one.
        validation: held-out data; without them the loader's, which ask for less noise if they were trained on.
        noise, output, dim, samples, seed: as in `calibrate`. A regression's noise is fitted to the validation data.

    Raises:
        NotVariationalError, UninitializedLayerError: as in `calibrate`.
        UsageError: there is no such Linear layer with an additive posterior of its own; or, without `layers`, the
            model's output is not that of the last one.
    """
    refuse_lazy(model, "there is no noise to fit")
    chosen = _linear_layers(model, layers)
    blank = Calibration(task, noise=noise, output=output, dim=dim)
    with undisturbed(model, seed):
        data = held_out(model, loader, blank, None)
        judge = data if validation is None else held_out(model, validation, data.blank, None)
        with posterior_mean(model):
            curved = _curved(model, list(chosen.values()), data, judge, last=layers is None)
            before = judge.outputs(model, 1)
            judged = (model, judge) if layers is not None else _on_features(model, next(iter(curved)), judge)
        for layer, found in curved.items():
            put_basis(layer, "weight", found.basis.to(layer.weight))
        precision = _chosen(model, curved, *judged, samples, seed)
        relative, nll = _others(model, curved, judge, samples, seed)
    return FittedStd(tuple(chosen), precision, relative, judge.nll(before), nll)


def _curved(model: nn.Module, layers: list[Any], data: HeldOut, judge: HeldOut, last: bool) -> dict[Any, Curvature]:
    if last:
        return {layers[0]: last_curvature(model, layers[0], data, judge)}
    return dict(zip(layers, curvatures(model, layers, data, judge), strict=True))


def _on_features(model: nn.Module, layer: Variational, judge: HeldOut) -> tuple[nn.Module, HeldOut]:
    """What to draw from while all other layers are silent: the last layer alone, called with what reaches it.

    The whole model where the layer does not itself say where its examples are, or a log-variance lies elsewhere.
    """
    settings, blank = layer._settings, judge.blank
    if settings.rows > 1 or settings.batch_dim != 0 or blank.noise not in (None, HALVES):
        return model, judge
    features: list[Any] = []
    handle = layer.register_forward_hook(lambda _, inputs, output: features.append(inputs[0]))
    try:
        for call, _ in judge.batches:
            called(model, call)
    finally:
        handle.remove()
    calls = [(Call((x,), {}), target) for x, (_, target) in zip(features, judge.batches, strict=True)]
    return layer, replace(judge, batches=calls, blank=replace(blank, output=None))


def _chosen(
    model: nn.Module, curved: dict[Any, Curvature], drawn: nn.Module, judge: HeldOut, samples: int, seed: int
) -> float:
    """The prior's precision by validation NLL, the other layers silent; the layers have their posteriors afterwards.

    The smallest that predicts as well as the best. Validation data hardly tell them apart, as they lie where the
    training data do; a wide prior tells what lies elsewhere.
    """
    _set_others(model, curved, 0.0)

    def set_precision(precision: float) -> None:
        for layer, found in curved.items():
            layer.set_std("weight", (found.precision + precision).rsqrt())

    def compared(precision: float) -> Comparison:
        set_precision(precision)
        with seeded(model, seed):
            return judge.compared(judge.outputs(drawn, samples))

    tried = {precision: compared(precision) for precision in PRECISIONS}
    least = min(tried.values(), key=lambda one: one.nll)
    best: float = min(precision for precision, one in tried.items() if as_good(one.losses, least.losses))
    set_precision(best)
    for layer in curved:
        prior = layer._settings.prior
        mean = prior.mean if isinstance(prior, Normal) else 0.0
        layer._settings = replace(layer._settings, prior=Normal(mean, Scale("constant", best**-0.5)))
        layer._buffers.pop("weight_prior_std", None)
    return best


def _others(
    model: nn.Module, fitted: Collection[Variational], judge: HeldOut, samples: int, seed: int
) -> tuple[float, float]:
    def nll(relative: float) -> float:
        _set_others(model, fitted, relative)
        with seeded(model, seed):
            return judge.nll(judge.outputs(model, samples))

    nlls = {relative: nll(relative) for relative in RELATIVE}
    best = min(RELATIVE, key=lambda relative: nlls[relative])
    _set_others(model, fitted, best)
    return best, nlls[best]


def _set_others(model: nn.Module, fitted: Collection[Variational], relative: float) -> None:
    for term in terms(model):
        own, name = term.layers[0], term.mean_name
        if own not in fitted or name != "weight":
            rule = Scale("relative", relative, FLOOR)
            own.set_std(name, rule.std(own.mean_of(name).detach(), 1) if relative else SMALLEST_STD)  # zero: KL of inf


def _linear_layers(model: nn.Module, selectors: str | Sequence[str] | None) -> dict[str, Any]:
    """The Linear layers that these selectors pick, or the last one, by name."""
    every = {name: layer for name, layer in variational_layers(model) if isinstance(layer, nn.Linear)}
    if not every:
        raise UsageError(f"{type(model).__name__} has no variational Linear layer whose std could be fitted")
    asked = ["last"] if selectors is None else [selectors] if isinstance(selectors, str) else selectors
    candidates = Candidates(Candidate((name,), plain_class(type(layer)), True) for name, layer in every.items())
    places: set[int] = set()
    for text in asked:
        try:
            found = picked(compiled(text), candidates)
        except SelectorError as error:
            raise UsageError(f"layers: {text!r} {error}") from None
        if not found:
            raise UsageError(f"layers: {text!r} picks no variational Linear layer of {', '.join(list(every)[:6])}, ...")
        places |= found
    chosen = {name: layer for at, (name, layer) in enumerate(every.items()) if at in places}
    for name, layer in chosen.items():
        _refuse_shared(model, name, layer)
    return chosen


def _refuse_shared(model: nn.Module, name: str, layer: Any) -> None:
    tied = any(layer in term.layers and len(term.layers) > 1 for term in terms(model))
    if tied or is_computed(layer, "weight") or layer._settings.posterior.parameterization != "additive":
        raise UsageError(f"the weight of {name!r} is tied, computed or has a multiplicative posterior: none to fit")
