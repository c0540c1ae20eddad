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
        _drawn_as_one(axes, [[(at, 0), (at, value)] for at, value in enumerate(values)], COLORS[0], linewidth=1.4)
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
    _bars(made, [state.noise for state in states], "std / |w|", COLORS[0])
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
    _bars(made, rows, "posterior std / prior std", COLORS[2])
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
    levels = [100 * level for level in SNR_LEVELS]
    shown = [list(zip(levels, state.snr, strict=True)) for state in found.posteriors]
    _drawn_as_one(curves, shown, COLORS[0], linewidth=0.8, alpha=0.7 if len(shown) <= _MOST_NAMED else 0.35)
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


def _bars(made: Any, rows: Sequence[Sequence[float]], label: str, color: str) -> None:
    """Quantiles over depth: of each posterior a point, and two bars around it."""
    axes = made.add_subplot()
    few = len(rows) <= _MOST_NAMED
    for low, high, width in ((0, 4, 1.0), (1, 3, 4.0 if few else 2.2)):
        bars = [[(at, row[low]), (at, row[high])] for at, row in enumerate(rows)]
        _drawn_as_one(axes, bars, color, linewidth=width, alpha=0.45, solid_capstyle="butt")
    axes.plot([row[2] for row in rows], "o", color=color, markersize=4 if few else 2)
    axes.set(ylabel=label, xlabel="posterior, in the model's order")
    log_axis(axes, *_range(rows, 1e-4, 1e2))
    axes.set_xticks(range(0, len(rows), 1 if len(rows) < 13 else len(rows) // 6))
    axes.margins(x=0.04)


def _drawn_as_one(axes: Any, lines: Sequence[Sequence[tuple[float, float]]], color: str, **style: Any) -> None:
    """Many lines as one path with gaps: on a page, a path for each is most of its size."""
    points = [point for line in lines for point in (*line, (math.nan, math.nan))]
    kept = [(x, y) if math.isfinite(y) else (math.nan, math.nan) for x, y in points]
    axes.plot(*zip(*kept, strict=True), color=color, **style)


def _range(rows: Sequence[Sequence[float]], lowest: float, highest: float) -> tuple[float, float]:
    """Limits of a logarithmic axis that hold the numbers and 1, as far as they lie between these."""
    known = [value for row in rows for value in row if 0 < value < math.inf]
    low, high = min([*known, 1.0]), max([*known, 1.0])
    return max(low, lowest) / 1.4, min(high, highest) * 1.6


def _short(name: str) -> str:
    name = printable(name)
    return name if len(name) <= _LONGEST else f"…{name[-_LONGEST + 1 :]}"


def _inspected(of: nn.Module | Inspection) -> Inspection:
    return of if isinstance(of, Inspection) else inspect(of)
