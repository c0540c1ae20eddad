"""The numbers that say how each posterior of a model is: its KL, its signal and noise, what has moved."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..distributions.prior import Normal, ScaleMixture
from ..estimators.precision import widened
from ..findings import EDGES, LEVELS, SNR_LEVELS, PosteriorState
from ..nn.kl import Term, terms
from ..nn.parametrized_weights import mask
from ..nn.starts import moved_since_start
from ..programs.part import shown
from ..report.fold_names import few_names
from ..report.lines import posterior_text
from .signal_to_noise import signal_to_noise

AT_PRIOR = 0.05  # nats a weight: the std within a quarter of the prior's, and the mean within a third of its std
_MOST_SORTED = 2**20  # elements; of a larger weight the quantiles are those of evenly spaced ones


@torch.no_grad()
def posterior_states(model: nn.Module) -> list[PosteriorState]:
    """One state for each posterior, in the model's order. `reached` is as forward passes left it.

    Raises:
        UninitializedLayerError: a layer is on the meta device, or is lazy and has not seen data.
    """
    all_terms = terms(model)
    ran = any(term.reached for term in all_terms)
    return [_state(term, term.reached if ran else None) for term in all_terms]


@torch.no_grad()
def near_priors(model: nn.Module) -> list[str]:
    """The names of the posteriors whose KL is below `AT_PRIOR` nats a weight."""
    weights = [(term, term.layers[0].mean_of(term.mean_name).numel()) for term in terms(model)]
    return [term_name(term) for term, count in weights if term.evaluate() < AT_PRIOR * count]


def tell_of_priors(model: nn.Module) -> None:
    """Warn of the posteriors that training left as their priors."""
    near = near_priors(model)
    if near:
        warnings.warn(
            f"{len(near)} posteriors ended as their priors, so that their stds say nothing of the data: "
            f"{few_names(near)}. bayesify.calibrate fits one factor for all stds; less KL (n_train, beta) or "
            "bayesify.fit_std lets the data say more; bayesify.inspect shows each",
            stacklevel=3,
        )


def term_name(term: Term) -> str:
    """The name of the mean as `named_parameters` has it."""
    return shown(f"{term.layer_name}.{term.mean_name}".lstrip("."))


def _state(term: Term, reached: bool | None) -> PosteriorState:
    layer: Any = term.layers[0]
    name = term.mean_name
    snr = _counted(layer, name, signal_to_noise(layer, name))
    left = mask(layer, name)
    mean_moved, scale_moved = moved_since_start(layer, name) or (None, None)
    return PosteriorState(
        name=term_name(term),
        type=type(layer).__name__,
        posterior=posterior_text(layer._settings),
        prior=str(layer._settings.prior),
        weights=snr.numel(),
        pruned=0 if left is None else left.numel() - int(left.count_nonzero()),
        kl=float(term.evaluate()),
        snr=quantiles(snr, SNR_LEVELS),
        prior_ratio=_prior_ratio(layer, name),
        from_prior=_from_prior(layer, name),
        moved=_moved(layer, name),
        free=_share(snr <= 1),
        histogram=_histogram(snr),
        reached=reached,
        mean_moved=mean_moved,
        scale_moved=scale_moved,
    )


def quantiles(values: Tensor, levels: Sequence[float]) -> tuple[float, ...]:
    """Quantiles, linear between the two nearest elements; of very many values those of an even sample."""
    flat = values.flatten()
    if not flat.numel():
        return (0.0,) * len(levels)
    if flat.numel() > _MOST_SORTED:
        flat = flat[:: -(-flat.numel() // _MOST_SORTED)]
    ordered = flat.double().sort().values
    places = torch.tensor(levels, dtype=torch.float64) * (len(ordered) - 1)
    low = places.long()
    high = (low + 1).clamp_max(len(ordered) - 1)
    return tuple(torch.lerp(ordered[low].cpu(), ordered[high].cpu(), places - low).tolist())


def _prior_ratio(layer: Any, name: str) -> tuple[float, ...] | None:
    """Of the posterior's std over the prior's; of a posterior in axes of its own, along those."""
    prior = layer._settings.prior
    std = layer.counted(name, widened(layer.std_of(name)))
    if isinstance(prior, Normal):
        return quantiles(std / layer.normal_prior(name)[1], LEVELS)
    if isinstance(prior, ScaleMixture):
        return quantiles(std / (prior.pi * prior.std1**2 + (1 - prior.pi) * prior.std2**2) ** 0.5, LEVELS)
    return None


def _from_prior(layer: Any, name: str) -> float | None:
    if not isinstance(layer._settings.prior, Normal):
        return None
    mean, std = layer.normal_prior(name)
    return _root_mean_square((layer.counted(name, widened(layer.mean_of(name))) - mean) / std)


def _moved(layer: Any, name: str) -> float | None:
    start = layer._buffers.get(f"{name}_prior_mean")
    if start is None:
        return None
    start, now = (layer.counted(name, widened(tensor)) for tensor in (start, layer.mean_of(name)))
    return _root_mean_square(now - start) / max(_root_mean_square(start), torch.finfo(torch.float32).tiny)


def _histogram(snr: Tensor) -> tuple[int, ...]:
    if not snr.numel():
        return (0,) * (len(EDGES) - 1)
    width = EDGES[1] - EDGES[0]
    noise = -snr.double().clamp_min(1e-30).log10()
    places = ((noise - EDGES[0]) / width).floor().clamp(0, len(EDGES) - 2).nan_to_num(len(EDGES) - 2).long()
    return tuple(torch.bincount(places.flatten().cpu(), minlength=len(EDGES) - 1).tolist())


def _counted(layer: Any, name: str, values: Tensor) -> Tensor:
    counted: Tensor = layer.counted(name, values)
    return counted


def _root_mean_square(values: Tensor) -> float:
    return float(values.double().square().mean().sqrt()) if values.numel() else 0.0


def _share(truths: Tensor) -> float:
    return float(truths.double().mean()) if truths.numel() else 0.0

