"""What it would cost to prune a model, before one does it: as its posterior expects, and as held-out data say."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from ..errors import NotCopyableError, UsageError
from ..findings import PruningPoint
from ..nn.kl import terms
from ..nn.layer_kinds import bias_names
from ..surgery.copying import copied
from .prune import prune
from .scoring import Score, Scoring
from .signal_to_noise import signal_to_noise

FRACTIONS = (0.0, 0.1, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.9, 0.95)
MEASURED = (0.0, 0.25, 0.5, 0.75, 0.9)
_BINS, _LOW, _HIGH = 2400, -6.0, 6.0  # of log10 |mean|/std: one is 1.2 % wide


@torch.no_grad()
def pruning_curve(model: nn.Module, scoring: Scoring | None = None) -> tuple[PruningPoint, ...]:
    """Points at `FRACTIONS` of the network's weights, biases left out; measured at `MEASURED` if there are data."""
    counts = torch.zeros(_BINS, dtype=torch.float64)
    for term in terms(model):
        layer, name = term.layers[0], term.mean_name
        if name not in bias_names(layer):
            logs = signal_to_noise(layer, name).log10().clamp(_LOW, _HIGH).nan_to_num(_LOW)
            counts += torch.histc(logs.float(), _BINS, _LOW, _HIGH).cpu()
    points = [_point(counts, fraction) for fraction in FRACTIONS]
    return tuple(points if scoring is None else _measured(model, points, scoring))


def _point(counts: torch.Tensor, fraction: float) -> PruningPoint:
    width = (_HIGH - _LOW) / _BINS
    snr = 10 ** (_LOW + width * (torch.arange(_BINS, dtype=torch.float64) + 0.5))
    total = counts.cumsum(0)
    wanted = fraction * total[-1]
    taken = torch.minimum(counts, (wanted - (total - counts)).clamp_min(0))
    last = int(taken.nonzero().max()) if bool(taken.any()) else 0
    return PruningPoint(fraction, float(snr[last]) if fraction else 0.0, float((taken * (snr.square() - 1) / 2).sum()))


def _measured(model: nn.Module, points: list[PruningPoint], scoring: Scoring) -> list[PruningPoint]:
    """The same points with what held-out data say; those that cannot be measured stay as they are."""
    try:
        twin = copied(model)
    except NotCopyableError:
        return points
    measured = {}
    for fraction in MEASURED:
        try:
            if fraction:
                prune(twin, fraction=fraction)
        except UsageError:  # all weights have the same |mean|/std, or none can be pruned
            break
        measured[fraction] = scoring.score(twin, "")
    return [_scored(point, measured.get(point.fraction)) for point in points]


def _scored(point: PruningPoint, score: Score | None) -> PruningPoint:
    return point if score is None else replace(point, nll=score.nll, accuracy=score.accuracy, rmse=score.rmse)
