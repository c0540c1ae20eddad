"""How a converted model predicts held-out data: how sure, how often right, and whether it knows which are hard."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor, nn

from ..findings import Bin, Performance, Quality, Separation
from ..nn.posterior_mean import posterior_mean
from .calibration import Calibration
from .held_out import HeldOut, Labels, Numbers, Outputs
from .likelihoods import BINS
from .passes import undisturbed
from .predict import predict
from .prediction import prediction_set
from .scoring import Scoring

SHARES = tuple(step / 20 for step in range(1, 21))
INSIDE = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)  # levels of sets and intervals
_HISTOGRAM = 20


def quality_of(model: nn.Module, scoring: Scoring, other: Any = None) -> tuple[Quality, Tensor]:
    """The quality, and how many nats each target costs more with noise than at the mean.

    Args:
        other: a tensor, a mapping or batches of inputs that are not like the model's own.
    """
    data: Any = scoring.data
    with undisturbed(model, scoring.seed):
        with posterior_mean(model):
            mean = data.outputs(model, 1)
        outputs = data.outputs(model, scoring.samples)
    ways = [("mean network", mean, data.start(mean)), ("sampled", outputs, data.start(outputs))]
    if scoring.calibration is not None:
        ways.append(("calibrated", outputs, scoring.calibration))
    _, _, best = ways[-1]
    uncertainty, errors = _uncertainty(data, outputs, best)
    separation = None if other is None else _separation(model, scoring, uncertainty, other)
    found = Quality(
        task="classification" if isinstance(data, Labels) else "regression",
        examples=len(errors),
        samples=scoring.samples,
        performances=tuple(_performance(data, *way) for way in ways),
        shares=SHARES,
        risks={name: risks(values, errors, root=isinstance(data, Numbers)) for name, values in uncertainty.items()},
        coverage=tuple((level, _covered(data, outputs, best, level)) for level in INSIDE),
        nll_by_samples=tuple(
            (draws, _nll(data, [*(part[:draws] for part in outputs[:-1]), outputs[-1]], best))
            for draws in _doubling(scoring.samples)
        ),
        separation=separation,
    )
    return found, (data.losses(outputs, ways[1][2]) - data.losses(mean, ways[0][2])).flatten()


def reliability(probabilities: Tensor, labels: Tensor, bins: int = BINS) -> tuple[Bin, ...]:
    """Mean confidence and accuracy in bins of equally many examples, by rising confidence.

    Args:
        probabilities: (n, classes).
        labels: (n,).
    """
    confidence, predicted = probabilities.double().max(-1)
    order = confidence.argsort(stable=True)
    right = (predicted == labels).double()[order]
    parts = zip(confidence[order].tensor_split(bins), right.tensor_split(bins), strict=True)
    return tuple(Bin(float(sure.mean()), float(own.mean()), len(own)) for sure, own in parts if len(own))


def risks(uncertainty: Tensor, errors: Tensor, root: bool = False) -> tuple[float, ...]:
    """The mean error of the most certain `SHARES` of the examples, or its square root (El-Yaniv & Wiener 2010).

    Args:
        uncertainty, errors: (n,).
    """
    ordered = errors.double()[uncertainty.argsort(stable=True)]
    counts = [max(1, round(share * len(ordered))) for share in SHARES]
    means = [float(ordered[:count].mean()) for count in counts]
    return tuple(mean**0.5 if root else mean for mean in means)


def auroc(own: Tensor, other: Tensor) -> float:
    """The probability that a value of `other` is above one of `own`, ties counting half (Mann & Whitney 1947)."""
    ordered = own.double().sort().values
    below = torch.searchsorted(ordered, other.double())
    equal_or_below = torch.searchsorted(ordered, other.double(), right=True)
    return float((below + equal_or_below).double().mean() / (2 * max(len(own), 1)))


def separation_of(own: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> Separation:
    """How well measures of uncertainty, the histogram's first, tell other data from the model's own."""
    own = {name: own[name].flatten().cpu() for name in other}
    other = {name: values.flatten().cpu() for name, values in other.items()}
    name = next(iter(other))
    most = float(torch.cat([own[name], other[name]]).double().quantile(0.99)) or 1.0
    edges = torch.linspace(0, most, _HISTOGRAM + 1)
    shares = [_histogram(values[name], most) for values in (own, other)]
    return Separation({name: auroc(own[name], other[name]) for name in other}, tuple(edges.tolist()), *shares)


def _performance(data: HeldOut, name: str, outputs: Outputs, calibration: Calibration) -> Performance:
    scores = data.scores(name, outputs, calibration)
    bins: tuple[Bin, ...] = ()
    if isinstance(data, Labels):
        bins = reliability(*data.probabilities(outputs, calibration))
    return Performance(name, scores.nll, ece=scores.ece, reliability=bins, **data.headline(outputs))


def _uncertainty(data: HeldOut, outputs: Outputs, calibration: Calibration) -> tuple[dict[str, Tensor], Tensor]:
    """How uncertain each target is, by measure, the first what `epistemic` is; and its error."""
    if isinstance(data, Labels):
        probabilities, labels = data.probabilities(outputs, calibration)
        draws = torch.softmax(outputs[0] / calibration.temperature, -1)
        information = _entropy(probabilities) - _entropy(draws).mean(0)
        measures = {"mutual information": information, "confidence": -probabilities.amax(-1)}
        return measures, probabilities.argmax(-1) != labels
    assert isinstance(data, Numbers)
    mean, *_, target = outputs
    epistemic = mean.var(0)
    total = epistemic + data.variance(outputs, calibration).mean(0)
    measures = {"epistemic std": epistemic.flatten().sqrt(), "total std": total.flatten().sqrt()}
    return measures, (mean.mean(0) - target[0]).square().flatten()


def _entropy(probabilities: Tensor) -> Tensor:
    entropy: Tensor = torch.special.entr(probabilities).sum(-1)
    return entropy


def _covered(data: Any, outputs: Outputs, calibration: Calibration, level: float) -> float:
    if isinstance(data, Labels):
        probabilities, labels = data.probabilities(outputs, calibration)
        members = prediction_set(probabilities, level, -1, calibration.conformal)
        return float(members.gather(-1, labels.unsqueeze(-1)).double().mean())
    bound = NormalDist().inv_cdf((1 + level) / 2)
    if calibration.conformal is not None:
        bound = calibration.conformal.bound(level)
    return float((data.distance(outputs, calibration) <= bound).double().mean())


def _nll(data: HeldOut, outputs: Outputs, calibration: Calibration) -> float:
    return float(data.losses(outputs, calibration).mean())


def _doubling(samples: int) -> list[int]:
    return [*(2**power for power in range(samples.bit_length()) if 2**power < samples), samples]


def _separation(model: nn.Module, scoring: Scoring, own: Mapping[str, Tensor], other: Any) -> Separation:
    blank = scoring.data.blank
    batches = (other,) if isinstance(other, Tensor | Mapping) or not isinstance(other, Iterable) else (iter(other),)
    noise = blank.noise if isinstance(blank.noise, str) else 1.0 if blank.task == "regression" else None
    found = predict(
        model, *batches, samples=max(scoring.samples, 2), task=blank.task, output=blank.output, dim=blank.dim,
        noise=noise, seed=scoring.seed,
    )  # fmt: skip
    if found.task == "classification":
        others = {"mutual information": found.epistemic, "confidence": -found.confidence}
    else:
        others = {"epistemic std": found.epistemic.sqrt()}
    return separation_of(own, others)


def _histogram(values: Tensor, most: float) -> tuple[float, ...]:
    counts = torch.histc(values.float().clamp(0, most), _HISTOGRAM, 0, most)
    return tuple((counts / max(len(values), 1)).tolist())
