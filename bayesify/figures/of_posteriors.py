"""Figures of the posteriors: their KL, their noise beside their weights and beside their priors, what pruning costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from ..errors import UsageError, did_you_mean
from ..escaping import printable
from ..findings import EDGES, SNR_LEVELS, PosteriorState
from ..uncertainty.inspect import Inspection, inspect
from .style import COLORS, FAINT, INK, figure, log_axis

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_NAMED = 24  # posteriors; of more the figure shows their order, and no names
_LONGEST = 26  # characters of a name


@figure
def _kl(made: Any, states: Sequence[PosteriorState]) -> None:
    values = [state.kl for state in states]
    if len(states) > _MOST_NAMED:
        axes = made.add_subplot()
        axes.vlines(range(len(values)), 0, values, color=COLORS[0], linewidth=1.4)
        axes.set(xlabel="posterior, in the model's order", ylabel="KL, nats", ylim=(0, None))
        axes.grid(axis="x", visible=False)
        return
    made.set_figheight(max(1.6, 0.55 + 0.2 * len(states)))
    axes = made.add_subplot()
    axes.barh(range(len(values)), values, height=0.62, color=COLORS[0])
    axes.set_yticks(range(len(values)), [_short(state.name) for state in states])
    axes.set(xlabel="KL, nats", ylim=(len(values) - 0.4, -0.6))
    axes.grid(axis="y", visible=False)


def kl(of: nn.Module | Inspection) -> Figure:
    """KL(q‖p) of each posterior, in nats."""
    return _kl(_inspected(of).posteriors)


@figure
def _noise(made: Any, states: Sequence[PosteriorState]) -> None:
    _bands(made, [state.noise for state in states], "std / |w|", COLORS[0])
    axes = made.axes[0]
    axes.axhline(1, color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
    axes.annotate("as much noise as signal", (1, 1), xycoords=("axes fraction", "data"), xytext=(0, 3),
                  textcoords="offset points", ha="right", fontsize=7.5)  # fmt: skip


def noise(of: nn.Module | Inspection) -> Figure:
    """std/|w| of each posterior over the model's depth: the median, and where half and 90 % of the weights lie."""
    return _noise(_inspected(of).posteriors)


@figure
def _prior_ratio(made: Any, states: Sequence[PosteriorState]) -> None:
    rows = [state.prior_ratio or (math.nan,) * 5 for state in states]
    _bands(made, rows, "posterior std / prior std", COLORS[2])
    made.axes[0].axhline(1, color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
    made.axes[0].annotate("the prior", (1, 1), xycoords=("axes fraction", "data"), xytext=(0, 3),
                          textcoords="offset points", ha="right", fontsize=7.5)  # fmt: skip


def prior_ratio(of: nn.Module | Inspection) -> Figure:
    """The posterior's std over the prior's, over the model's depth: at 1 the data said nothing of a weight's size.

    Raises:
        UsageError: no prior of the model has a std.
    """
    states = [state for state in _inspected(of).posteriors if state.prior_ratio is not None]
    if not states:
        raise UsageError("no prior of this model has a std: log-uniform ones have none")
    return _prior_ratio(states)


@figure
def _pruning(made: Any, found: Inspection) -> None:
    curves, cost = made.subplots(2, 1, sharex=True)
    made.set_figheight(3.6)
    for state in found.posteriors:
        shown = [(100 * level, snr) for level, snr in zip(SNR_LEVELS, state.snr, strict=True) if 0 < snr < math.inf]
        if shown:
            curves.plot(*zip(*shown, strict=True), color=COLORS[0], linewidth=0.8, alpha=_faintness(found.posteriors))
    points = [point for point in found.pruning if point.fraction > 0 and point.snr > 0]
    curves.plot([100 * point.fraction for point in points], [point.snr for point in points], color=INK)
    curves.axhline(1, color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
    curves.set_ylabel("|w| / std")
    log_axis(curves, *_range([state.snr for state in found.posteriors], 1e-2, 1e3))
    _draw_cost(cost, found)
    cost.set(xlabel="weights pruned, %", xlim=(0, 100))


def pruning(of: nn.Module | Inspection) -> Figure:
    """Signal to noise by the share of the weights that have less, and what it costs to prune those.

    The cost is that on held-out data, where the inspection had such; else what the posterior expects on the training
    data, Σ ((|w|/std)² - 1)/2.
    """
    return _pruning(_inspected(of))


@figure
def _histogram(made: Any, state: PosteriorState) -> None:
    axes = made.add_subplot()
    width = EDGES[1] - EDGES[0]
    total = max(sum(state.histogram), 1)
    shares = [100 * count / total for count in state.histogram]
    axes.bar(EDGES[:-1], shares, width, align="edge", color=COLORS[0])
    axes.axvline(0, color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
    ticks = range(-4, 3)
    axes.set_xticks(ticks, [f"{10.0**power:g}" for power in ticks])
    axes.set(xlabel="std / |w|", ylabel="weights, %", title=_short(state.name))
    axes.grid(axis="x", visible=False)


def histogram(of: nn.Module | Inspection, name: str) -> Figure:
    """How std/|w| is spread over the weights of one posterior; what lies beyond the axis counts at its ends.

    Args:
        name: as `named_parameters` has it: `fc.weight`.

    Raises:
        UsageError: the model has no posterior of that name.
    """
    states = {state.name: state for state in _inspected(of).posteriors}
    if name not in states:
        raise UsageError(f"the model has no posterior over {name!r}.{did_you_mean(name, states)}")
    return _histogram(states[name])


def _draw_cost(axes: Any, found: Inspection) -> None:
    measured = [point for point in found.pruning if point.nll is not None]
    if len(measured) > 1:
        axes.plot([100 * point.fraction for point in measured], [point.nll for point in measured], "o-",
                  color=COLORS[1], markersize=3.5)  # fmt: skip
        axes.set_ylabel("NLL, held out")
        return
    points = found.pruning
    axes.plot([100 * point.fraction for point in points], [point.expected for point in points], color=COLORS[1])
    axes.axhline(0, color=FAINT, linewidth=0.8)
    axes.set_ylabel("cost, nats")


def _bands(made: Any, rows: Sequence[Sequence[float]], label: str, color: str) -> None:
    """Quantiles over depth: a line, and two bands around it."""
    axes = made.add_subplot()
    finite = [[value if 0 < value < math.inf else math.nan for value in row] for row in rows]
    columns = list(zip(*finite, strict=True))
    places = list(range(len(rows)))
    few = len(rows) <= _MOST_NAMED
    if few:
        for low, high, width in ((0, 4, 1.0), (1, 3, 4.0)):
            axes.vlines(places, columns[low], columns[high], color=color, linewidth=width, alpha=0.45)
        axes.plot(places, columns[2], "o", color=color, markersize=4)
    else:
        for low, high in ((0, 4), (1, 3)):
            axes.fill_between(places, columns[low], columns[high], color=color, alpha=0.22)
        axes.plot(places, columns[2], color=color)
    axes.set(ylabel=label, xlabel="posterior, in the model's order")
    log_axis(axes, *_range(rows, 1e-4, 1e2))
    axes.set_xticks(places if few and len(rows) < 13 else _places(len(rows)))
    axes.margins(x=0.04)


def _range(rows: Sequence[Sequence[float]], lowest: float, highest: float) -> tuple[float, float]:
    """Limits of a logarithmic axis that hold the numbers and 1, as far as they lie between these."""
    known = [value for row in rows for value in row if 0 < value < math.inf]
    low, high = min([*known, 1.0]), max([*known, 1.0])
    return max(low, lowest) / 1.4, min(high, highest) * 1.6


def _places(count: int) -> list[int]:
    step = max(1, count // 6)
    return list(range(0, count, step))


def _faintness(states: Sequence[PosteriorState]) -> float:
    return max(0.15, min(0.7, 6 / len(states)))


def _short(name: str) -> str:
    name = printable(name)
    return name if len(name) <= _LONGEST else f"…{name[-_LONGEST + 1 :]}"


def _inspected(of: nn.Module | Inspection) -> Inspection:
    return of if isinstance(of, Inspection) else inspect(of)
