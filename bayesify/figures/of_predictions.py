"""Figures of how a model predicts: of an inspection that had data, or of a prediction and its targets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import UsageError
from ..findings import Bin, Quality, Separation
from ..uncertainty.inspect import Inspection
from ..uncertainty.prediction import Prediction
from ..uncertainty.quality import INSIDE, SHARES, separation_of
from ..uncertainty.quality import reliability as reliability_bins
from ..uncertainty.quality import risks as risks_of
from .style import COLORS, FAINT, INK, figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MARKS = ("o", "s", "^", "D")  # told apart without colours


@figure
def _reliability(made: Any, curves: Mapping[str, Sequence[Bin]]) -> None:
    axes = made.add_subplot()
    axes.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
    for (name, bins), color, mark in zip(curves.items(), COLORS, _MARKS, strict=False):
        xs, ys = [own.confidence for own in bins], [own.accuracy for own in bins]
        axes.plot(xs, ys, f"{mark}-", color=color, markersize=3.5, linewidth=1.2, label=name)
    low = min([0.9, *(min(own.confidence, own.accuracy) for bins in curves.values() for own in bins)])
    axes.set(xlabel="confidence", ylabel="accuracy", xlim=(low - 0.02, 1.01), ylim=(low - 0.02, 1.02))
    axes.legend(loc="upper left")


def reliability(of: Inspection | Prediction, labels: Tensor | None = None) -> Figure:
    """Accuracy by confidence, in bins of equally many examples: on the diagonal where confidence is honest.

    Args:
        of: an inspection with data; or a prediction of classes, with its labels.

    Raises:
        UsageError: there are no classes, or no labels.
    """
    if isinstance(of, Prediction):
        if of.task != "classification":
            raise UsageError("reliability is that of classes: predict(..., task='classification')")
        classes = of.mean.movedim(of.dim, -1).flatten(0, -2)
        return _reliability({"predicted": reliability_bins(classes, _needed(labels).flatten())})
    curves = {way.name: way.reliability for way in _quality(of).performances if way.reliability}
    if not curves:
        raise UsageError("reliability is that of classes, and this inspection was of a regression")
    return _reliability(curves)


@figure
def _risk_coverage(made: Any, shares: Sequence[float], risks: Mapping[str, Sequence[float]], unit: str) -> None:
    axes = made.add_subplot()
    for (name, values), color, style in zip(risks.items(), COLORS, ("-", "--"), strict=False):
        axes.plot([100 * share for share in shares], values, style, color=color, label=f"by {name}")
    axes.set(xlabel="most certain examples, %", ylabel=unit, xlim=(0, 100), ylim=(0, None))
    axes.legend(loc="upper left", borderaxespad=0)


def risk_coverage(of: Inspection | Prediction, targets: Tensor | None = None) -> Figure:
    """The error of the most certain share of the examples: it falls to the left where uncertainty knows what is hard.

    Args:
        of: an inspection with data; or a prediction under a task, with its targets.

    Raises:
        UsageError: there are no targets, or no task.
    """
    if isinstance(of, Prediction):
        found, unit = _risks(of, _needed(targets))
        return _risk_coverage(SHARES, found, unit)
    quality = _quality(of)
    unit = "error rate" if quality.task == "classification" else "RMSE"
    return _risk_coverage(quality.shares, quality.risks, unit)


@figure
def _coverage(made: Any, pairs: Sequence[tuple[float, float]], what: str) -> None:
    axes = made.add_subplot()
    levels, covered = zip(*pairs, strict=True)
    axes.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
    axes.plot(levels, covered, "o-", color=COLORS[0], markersize=3.5)
    low = min(*levels, *covered) - 0.03
    axes.set(xlabel="level", ylabel=f"share of targets in {what}", xlim=(low, 1), ylim=(low, 1.01))


def coverage(of: Inspection | Prediction, targets: Tensor | None = None) -> Figure:
    """How many targets lie in sets or intervals of each level: on the diagonal, or above it, where they are honest.

    Args:
        of: an inspection with data; or a prediction under a task, with its targets.

    Raises:
        UsageError: there are no targets.
    """
    if isinstance(of, Prediction):
        pairs = tuple((level, _inside(of, _needed(targets), level)) for level in INSIDE)
        return _coverage(pairs, "sets" if of.task == "classification" else "intervals")
    quality = _quality(of)
    return _coverage(quality.coverage, "sets" if quality.task == "classification" else "intervals")


@figure
def _samples(made: Any, pairs: Sequence[tuple[int, float]], mean: float) -> None:
    axes = made.add_subplot()
    draws, nlls = zip(*pairs, strict=True)
    axes.plot(draws, nlls, "o-", color=COLORS[0], markersize=3.5, label="sampled")
    axes.axhline(mean, color=COLORS[1], linewidth=1.2, linestyle="--", label="mean network")
    axes.set(xscale="log", xlabel="samples", ylabel="NLL, nats")
    axes.set_xticks(draws, [str(count) for count in draws])
    axes.set_xticks([], minor=True)
    axes.legend(loc="best")


def samples(of: Inspection) -> Figure:
    """NLL by the number of draws: where it is flat, more draws gain nothing.

    Raises:
        UsageError: the inspection had no data.
    """
    quality = _quality(of)
    return _samples(quality.nll_by_samples, quality.performances[0].nll)


@figure
def _separation(made: Any, found: Separation, name: str) -> None:
    axes = made.add_subplot()
    width = found.edges[1] - found.edges[0]
    for shares, color, label in ((found.own, COLORS[0], "own data"), (found.other, COLORS[1], "other data")):
        axes.bar(found.edges[:-1], [100 * share for share in shares], width, align="edge", color=color, alpha=0.55,
                 label=label)  # fmt: skip
    auroc = ", ".join(f"{value:.3f} by {measure}" for measure, value in found.auroc.items())
    axes.set(xlabel=name, ylabel="examples, %", title=f"AUROC {auroc}")
    axes.axhline(0, color=FAINT, linewidth=0.8)
    axes.grid(axis="x", visible=False)
    axes.legend(loc="upper right")


def separation(of: Inspection | Prediction, other: Prediction | None = None) -> Figure:
    """The model's own uncertainty on its own data and on other data, and how well it tells the two apart.

    Args:
        of: an inspection with `ood=`; or a prediction, with one for other data.

    Raises:
        UsageError: there are no other data.
    """
    if isinstance(of, Prediction):
        if other is None:
            raise UsageError("separation needs a second prediction, for other data")
        found = separation_of(_epistemic(of), _epistemic(other))
        return _separation(found, next(iter(found.auroc)))
    if of.quality is None or of.quality.separation is None:
        raise UsageError("this inspection had no other data: bayesify.inspect(model, loader, task=..., ood=inputs)")
    return _separation(of.quality.separation, next(iter(of.quality.separation.auroc)))


def _epistemic(found: Prediction) -> dict[str, Tensor]:
    values = found.epistemic.detach().flatten().cpu()
    if found.task != "classification":
        return {"epistemic std": values.sqrt()}
    return {"mutual information": values, "confidence": -found.confidence.flatten().cpu()}


def _risks(found: Prediction, targets: Tensor) -> tuple[dict[str, Sequence[float]], str]:
    measures = _epistemic(found)
    if found.task == "classification":
        errors = (found.label != targets).flatten()
        return {name: risks_of(values, errors) for name, values in measures.items()}, "error rate"
    measures["total std"] = found.std.flatten()
    errors = (found.mean - targets.view_as(found.mean)).square().flatten()
    return {name: risks_of(values, errors, root=True) for name, values in measures.items()}, "RMSE"


def _inside(found: Prediction, targets: Tensor, level: float) -> float:
    if found.task == "classification":
        members = found.set(level).gather(found.dim, targets.unsqueeze(found.dim))
        return float(members.double().mean())
    low, high = found.interval(level)
    targets = targets.view_as(found.mean)
    return float(torch.logical_and(low <= targets, targets <= high).double().mean())


def _needed(targets: Tensor | None) -> Tensor:
    if targets is None:
        raise UsageError("a prediction needs its targets for this figure: give them as the second argument")
    return targets


def _quality(of: Inspection) -> Quality:
    if of.quality is None:
        raise UsageError("this inspection had no data: bayesify.inspect(model, loader, task=...)")
    return of.quality
