"""`prune`: zeroes the weights that the posterior says can go, those with the least signal for their noise.

Graves 2011 and Blundell et al. 2015, section 5.1: weights are ranked by |mean|/std over the whole network. What is
pruned is masked as by torch.nn.utils.prune, and has no noise and no KL. Its Parameter is kept as `weight_orig`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.utils import prune as torch_prune

from ..errors import UsageError, did_you_mean
from ..nn.basis import has_basis
from ..nn.kl import Term, terms
from ..nn.layer_kinds import bias_names, layer_kind
from ..nn.parametrized_weights import is_computed, is_pruned, mask, sources
from ..nn.rerouting import Rerouting
from ..surgery.all_or_nothing import all_or_nothing
from ..surgery.reset import refuse_lazy
from .calibration import stored_calibration
from .posterior_states import term_name
from .prediction import Task
from .pruned import Pruned, PrunedWeight
from .scoring import Score, Scoring, scoring_of
from .signal_to_noise import signal_to_noise

By = Literal["weight", "channel"]

_TIED = 0.1  # of all weights at the threshold: the ranking says nothing
_FEW = 8  # weights, of which so many may be at the threshold by chance


def prune(
    model: nn.Module, *, snr: float | None = None, fraction: float | None = None, by: By = "weight",
    loader: Iterable[Any] | None = None, task: Task | None = None, noise: str | None = None,
    output: str | int | None = None, dim: int = -1, samples: int = 16, seed: int = 0,
) -> Pruned:  # fmt: skip
    """Zero the weights of a converted model whose posterior has the least signal, |mean|/std: in place, as masks.

    Biases stay. So do weights that torch's pruning cannot mask, and the report says which and why: tied ones, those
    that a parametrization computes, that the parent of their module reads, that `fit_std` gave other axes.
    `bayesify.inspect` shows what pruning would cost. Train on, or `calibrate` anew, afterwards.

    Args:
        snr: prune the weights whose |mean|/std is less. At 1 a weight costs no more than its noise does already.
        fraction: or prune those with the lowest |mean|/std until this share of the weights is zero, between 0 and 1.
        by: "weight", or "channel": whole output channels of linear and convolution layers, by the root mean square of
            |mean|/std over their weights.
        loader: held-out batches (inputs..., target), as in `calibrate`: to say what it cost.
        task, noise, output, dim, samples, seed: as in `calibrate`; where that was called, they need not be given again.

    Raises:
        NotVariationalError: the model has no variational layer.
        UninitializedLayerError: a lazy layer has not seen data.
        UsageError: the arguments do not fit, nothing can be pruned, or all weights have the same |mean|/std.
    """
    _refuse_wrong(snr, fraction, by)
    refuse_lazy(model, "there is nothing to prune")
    places, skipped = _places(model, by)
    scoring = None
    if loader is not None:
        scoring = scoring_of(model, loader, task, noise=noise, output=output, dim=dim, samples=samples, seed=seed)
    before = None if scoring is None else scoring.score(model, "before")
    masks, threshold = _masks(places, snr, fraction, by)
    all_or_nothing(model, lambda: _put(places, masks))
    return _report(model, places, skipped, threshold, by, before, scoring)


@dataclass(frozen=True, eq=False)
class Place:
    """A weight that can be pruned, by its name in the model."""

    name: str
    term: Term


def _report(
    model: nn.Module, places: list[Place], skipped: list[tuple[str, str]], threshold: float, by: By,
    before: Score | None, scoring: Scoring | None,
) -> Pruned:  # fmt: skip
    after = None if scoring is None else scoring.score(model, "after")
    rows = tuple(_row(place) for place in places)
    calibrated = stored_calibration(model) is not None
    return Pruned(threshold, by, rows, tuple(skipped), before, after, calibrated)


def _row(place: Place) -> PrunedWeight:
    left = mask(place.term.layers[0], place.term.mean_name)
    assert left is not None
    return PrunedWeight(place.name, left.numel(), left.numel() - int(left.count_nonzero()))


def _places(model: nn.Module, by: By) -> tuple[list[Place], list[tuple[str, str]]]:
    """The weights that can be pruned, and (name, why not) of the others."""
    read = {id(layer) for module in model.modules() if isinstance(module, Rerouting) for layer in module._rerouted()}
    uses = Counter(id(parameter) for module in model.modules() for parameter in module._parameters.values())
    places, skipped = [], []
    for term in terms(model):
        name = term_name(term)
        if term.mean_name in bias_names(term.layers[0]):
            continue
        tied = any(uses[id(source)] > 1 for source in sources(term.layers[0], term.mean_name))
        why = "is tied to another layer" if tied else _why_not(term, by, read)
        if why is None:
            places.append(Place(name, term))
        else:
            skipped.append((name, why))
    if not places:
        why_not = "; ".join(f"{name} {why}" for name, why in skipped)
        raise UsageError(f"{type(model).__name__} has no weight that can be pruned: {why_not}")
    return places, skipped


def _why_not(term: Term, by: By, read: set[int]) -> str | None:
    layer, name = term.layers[0], term.mean_name
    if id(layer) in read or isinstance(layer, NonDynamicallyQuantizableLinear):
        return "is read by its parent, which never calls it"
    if layer._settings.weights or not layer_kind(layer).maskable:
        return "is of a module that torch's pruning cannot mask"
    if is_computed(layer, name) and not is_pruned(layer, name):
        return "is computed by a parametrization"
    if has_basis(layer, name):
        return "has a posterior in axes of its own, from fit_std"
    if by == "channel" and _channel_dim(layer) is None:
        return "has no output channels of its own"
    return None


def _channel_dim(layer: nn.Module) -> int | None:
    """The weight's dimension of output channels; None where they do not lie in one."""
    if isinstance(layer, nn.modules.conv._ConvTransposeNd):
        return 1 if layer.groups == 1 else None
    return 0 if isinstance(layer, nn.Linear | nn.Bilinear | nn.modules.conv._ConvNd) else None


@dataclass(frozen=True, eq=False)
class Ranked:
    """What is pruned together, of one weight: its elements, or its output channels.

    Attributes:
        shape: of the weight.
        scores: |mean|/std of each unit, in a shape that broadcasts to the weight's; of a channel the root mean square.
    """

    shape: torch.Size
    scores: Tensor

    @classmethod
    def of(cls, place: Place, by: By) -> Ranked:
        """The units of one weight."""
        layer, scores = place.term.layers[0], signal_to_noise(place.term.layers[0], place.term.mean_name)
        if by == "channel":
            others = [dim for dim in range(scores.dim()) if dim != _channel_dim(layer)]
            return cls(scores.shape, scores.square().mean(others, keepdim=True).sqrt())
        return cls(scores.shape, scores)

    @property
    def size(self) -> int:
        """How many elements a unit has."""
        return self.shape.numel() // max(self.scores.numel(), 1)


def _masks(places: list[Place], snr: float | None, fraction: float | None, by: By) -> tuple[list[Tensor], float]:
    """What is left of each weight, and the |mean|/std below which it went."""
    ranked = [Ranked.of(place, by) for place in places]
    if snr is not None:
        return [(own.scores >= snr).expand(own.shape) for own in ranked], snr
    assert fraction is not None
    scores = torch.cat([own.scores.flatten().cpu().double() for own in ranked])
    sizes = torch.cat([torch.full((own.scores.numel(),), own.size) for own in ranked])
    order = scores.argsort(stable=True)
    goes = sizes[order].cumsum(0) <= round(fraction * int(sizes.sum()))
    threshold = float(scores[order[min(int(goes.sum()), len(order) - 1)]])
    _refuse_tied(scores, threshold)
    left = torch.ones(len(scores), dtype=torch.bool)
    left[order[goes]] = False
    parts = torch.split(left, [own.scores.numel() for own in ranked])
    return [_expanded(part, own) for part, own in zip(parts, ranked, strict=True)], threshold


def _expanded(left: Tensor, ranked: Ranked) -> Tensor:
    return left.view_as(ranked.scores).to(ranked.scores.device).expand(ranked.shape)


def _refuse_tied(scores: Tensor, threshold: float) -> None:
    same = int(((scores - threshold).abs() <= 1e-3 * threshold).sum())
    if threshold > 0 and same > max(_TIED * len(scores), _FEW):
        raise UsageError(
            f"{same:,} of {len(scores):,} have the same |mean|/std of {threshold:.3g}, which does not say what goes: "
            "their stds are still a constant times the weights, as conversion sets them. Train the model with its KL"
        )


@torch.no_grad()  # torch copies no module that keeps a tensor with a graph
def _put(places: list[Place], masks: list[Tensor]) -> None:
    for place, left in zip(places, masks, strict=True):
        layer, name = place.term.layers[0], place.term.mean_name
        present = mask(layer, name)
        if present is None:
            put_mask: Any = torch_prune.custom_from_mask
            put_mask(layer, name, left.to(layer.mean_of(name).dtype))
        else:
            layer._buffers[f"{name}_mask"] = present * left
            setattr(layer, name, layer.mean_of(name))


def _refuse_wrong(snr: float | None, fraction: float | None, by: str) -> None:
    if (snr is None) == (fraction is None):
        raise UsageError("say how much to prune: snr=, the least |mean|/std that stays, or fraction=; one of them")
    if snr is not None and not 0 < snr < float("inf"):
        raise UsageError(f"snr={snr} is not a positive number: prune what has less |mean|/std than that")
    if fraction is not None and not 0 < fraction < 1:
        raise UsageError(f"fraction={fraction} does not lie between 0 and 1")
    if by not in ("weight", "channel"):
        raise UsageError(f"by={by!r} is neither 'weight' nor 'channel'.{did_you_mean(str(by), ('weight', 'channel'))}")
