"""How an inspection looks: a table with sparklines for a terminal, plain text for a pipe, HTML for a notebook."""

from __future__ import annotations

import io
import math
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Protocol

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from ..escaping import printable
from ..findings import Finding, PosteriorState, PruningPoint, Quality
from .fold_names import NameGroup, few_names, fold
from .lines import short, times
from .tables import NARROWEST, Column, table

MOST_LINES = 40
_BARS = "▁▂▃▄▅▆▇█"
_SHOWN = range(4, 24, 2)  # of the histogram: std/|w| from 0.001 to 100, two bins in a character
_LEGEND = (
    "std/|w|: its median over a layer's weights, and how it is spread from 0.001 to 100; free: the share with "
    "|w| ≤ std, each of which costs no more to remove than its noise does"
)


class Inspected(Protocol):
    """What an inspection is, as far as it is shown."""

    @property
    def model(self) -> str: ...
    @property
    def posteriors(self) -> tuple[PosteriorState, ...]: ...
    @property
    def findings(self) -> tuple[Finding, ...]: ...
    @property
    def pruning(self) -> tuple[PruningPoint, ...]: ...
    @property
    def quality(self) -> Quality | None: ...
    @property
    def kl(self) -> float: ...
    @property
    def weights(self) -> int: ...
    @property
    def free(self) -> float: ...


@dataclass(frozen=True)
class Row:
    """Posteriors of one kind in one line, numbers summed or as a range."""

    name: str
    states: tuple[PosteriorState, ...]

    @property
    def weights(self) -> int:
        """All of their weights."""
        return sum(state.weights for state in self.states)

    @property
    def kl(self) -> float:
        """Their KL, in nats."""
        return sum(state.kl for state in self.states)

    @property
    def free(self) -> float:
        """The share of weights whose removal costs nothing."""
        return sum(state.free * state.weights for state in self.states) / max(self.weights, 1)

    @property
    def histogram(self) -> list[int]:
        """Of std/|w|, all together."""
        return [sum(counts) for counts in zip(*(state.histogram for state in self.states), strict=True)]

    def span(self, values: Iterable[float | None]) -> str:
        """`0.021`, or `0.021–0.034` where they differ."""
        known = sorted(value for value in values if value is not None)
        if not known:
            return ""
        low, high = (number(value) for value in (known[0], known[-1]))
        return low if low == high else f"{low}–{high}"


def as_text(found: Inspected, *, full: bool = False, width: int | None = None) -> str:
    """The report as plain text without escape codes."""
    width = max(width or shutil.get_terminal_size().columns, NARROWEST)
    file = io.StringIO()
    console = Console(file=file, width=width, color_system=None, force_terminal=False, legacy_windows=False)
    console.print(report(found, width, full=full), markup=False, highlight=False, emoji=False)
    return "\n".join(line.rstrip() for line in file.getvalue().rstrip().splitlines())


def show(found: Inspected, console: Console, *, full: bool = False) -> None:
    """Print the report: in colours on a terminal, as plain text anywhere else."""
    if console.is_terminal:
        console.print(report(found, max(console.width, NARROWEST), full=full), highlight=False)
    else:
        console.file.write(as_text(found, full=full, width=console.width) + "\n")
        console.file.flush()


def report(found: Inspected, width: int, *, full: bool = False) -> RenderableType:
    """The report as something that rich prints, for a console of that width."""
    parts: list[RenderableType] = [Text(printable(found.model), style="bold"), _findings(found.findings)]
    parts += [table(_fitting(rows_of(found.posteriors, full), width)), Text(_LEGEND, style="dim")]
    parts += [Text("\n".join(quality_lines(found.quality)))] if found.quality is not None else []
    parts.append(Text(headline(found), style="bold"))
    return Group(*[line for part in parts for line in (part, Text(""))][:-1])


def rows_of(states: Sequence[PosteriorState], full: bool) -> list[Row]:
    """One line for each posterior; where there are many, repeated blocks are folded."""
    if full or len(states) <= MOST_LINES:
        return [Row(printable(state.name), (state,)) for state in states]
    groups: list[NameGroup[PosteriorState]] = fold(
        states, lambda state: printable(state.name), lambda state: (state.type, state.reached, state.scale_moved),
        lambda state: state.weights, most=MOST_LINES,
    )  # fmt: skip
    return [Row(group.name + times(len(group.items)), group.items) for group in groups]


def headline(found: Inspected) -> str:
    """`KL 12,345 nats, 1.2 for each of 10,240 weights; 37.5% of them have no more signal than noise`."""
    each = found.kl / max(found.weights, 1)
    free = f"; {found.free:.1%} of them have no more signal than noise"
    kl = f"{found.kl:,.0f}" if 1000 <= found.kl < math.inf else number(found.kl)
    return f"KL {kl} nats, {each:.3g} for each of {found.weights:,} weights{free}"


def about(finding: Finding) -> str:
    """The names that a finding is about, folded and no more than a few, and how many there are."""
    if not finding.posteriors:
        return "the model"
    return few_names(finding.posteriors)


def quality_lines(quality: Quality) -> list[str]:
    """How the model predicts, a line for each way to."""
    lines = [f"{quality.task}, {quality.examples:,} targets, {quality.samples} samples"]
    for way in quality.performances:
        numbers = [("accuracy", way.accuracy), ("RMSE", way.rmse), ("calibration error", way.ece)]
        told = [f"NLL {way.nll:.4f}", *(f"{name} {value:.4g}" for name, value in numbers if value is not None)]
        lines.append(f"  {way.name:<13} {', '.join(told)}")
    for name, value in (quality.separation.auroc if quality.separation else {}).items():
        lines.append(f"  other data apart by {name}: AUROC {value:.3f}")
    return lines


def number(value: float) -> str:
    """Three digits: `0.0213`, `1.2e-05`, `∞`."""
    if math.isinf(value):
        return "∞"
    return f"{value:.3g}" if value == 0 or 1e-3 <= abs(value) < 1e4 else f"{value:.1e}"


def count(value: float) -> str:
    """`9,408` or `2.36 M`, and three digits below 1."""
    return short(round(value)) if 1 <= value < math.inf else number(value)


def sparkline(counts: Sequence[int]) -> str:
    """The histogram of std/|w| in ten characters."""
    pairs = [sum(counts[at : at + 2]) for at in _SHOWN]
    pairs[0] += sum(counts[: _SHOWN[0]])
    pairs[-1] += sum(counts[_SHOWN[-1] + 2 :])
    most = max(pairs) or 1
    return "".join(" " if not count else _BARS[min(int(8 * count / most), 7)] for count in pairs)


def _findings(findings: Sequence[Finding]) -> RenderableType:
    if not findings:
        return Text("Nothing needs attention.", style="green")
    grid = Table.grid(padding=(0, 2, 0, 0), pad_edge=False)
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for finding in findings:
        grid.add_row(Text(finding.kind, style="yellow"), Text(f"{about(finding)}: {printable(finding.what)}"))
        grid.add_row("", Text(printable(finding.remedy), style="dim"))
    return grid


def _fitting(rows: Sequence[Row], width: int) -> list[Column]:
    """As many columns as the width takes, the first ones first; names are never cut."""
    columns = _columns(rows)
    order = [0, 3, 2, 4, 1, 5, 6, 7, 8]  # by how much they tell
    kept: list[int] = []
    room = width
    for at in order:
        if at < len(columns) and (not kept or columns[at].width + 2 <= room):
            kept.append(at)
            room -= columns[at].width + (2 if len(kept) > 1 else 0)
    return [columns[at] for at in sorted(kept)]


def _columns(rows: Sequence[Row]) -> list[Column]:
    medians = [row.span(state.noise[2] for state in row.states) for row in rows]
    ratios = [row.span(state.prior_ratio[2] if state.prior_ratio else None for state in row.states) for row in rows]
    moved = [row.span(state.moved for state in row.states) for row in rows]
    columns = [
        Column("posterior", [row.name for row in rows]),
        Column("weights", [short(row.weights) for row in rows], "right"),
        Column("KL", [count(row.kl) for row in rows], "right"),
        Column("std/|w|", medians, "right"),
        Column("", [sparkline(row.histogram) for row in rows], style="cyan"),
        Column("free", [f"{row.free:.1%}" for row in rows], "right"),
        Column("KL/weight", [number(row.kl / max(row.weights, 1)) for row in rows], "right"),
        Column("std/prior's", ratios, "right"),
        Column("moved", moved, "right"),
    ]
    return [column for column in columns if column.header == "" or any(column.cells)]


def as_html(found: Inspected) -> str:
    """The report as an HTML fragment for a notebook."""
    columns = _columns(rows_of(found.posteriors, full=False))
    head = "".join(f"<th style='text-align:left'>{escape(column.header)}</th>" for column in columns)
    cells = zip(*(column.cells for column in columns), strict=True)
    style = "text-align:left;white-space:nowrap;font-variant-numeric:tabular-nums"
    body = "".join(f"<tr>{''.join(f'<td style={style!r}>{escape(cell)}</td>' for cell in row)}</tr>" for row in cells)
    items = "".join(
        f"<li><b>{escape(finding.kind)}</b> {escape(about(finding))}: {escape(printable(finding.what))}"
        f"<br><small>{escape(printable(finding.remedy))}</small></li>"
        for finding in found.findings
    )
    lines = "<br>".join(map(escape, quality_lines(found.quality))) if found.quality else ""
    return (
        f"<p><b>{escape(printable(found.model))}</b></p><ul>{items or '<li>Nothing needs attention.</li>'}</ul>"
        f"<div style='overflow-x:auto'><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
        f"<p><small>{escape(_LEGEND)}</small></p><p>{lines}</p><p><b>{escape(headline(found))}</b></p>"
    )
