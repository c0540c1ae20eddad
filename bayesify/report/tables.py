"""How a plan looks: tables for a terminal, plain text for a pipe, HTML for a notebook."""

from __future__ import annotations

import io
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

from rich import box
from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from ..decision import Decision
from ..distributions.prior import SHALLOW, SHALLOW_PRIOR
from ..escaping import printable
from .lines import Line, Rest, converting, descriptions, layer_count, rest, short, summary, times

Decisions = Sequence[Decision]
Totals = Mapping[str, int]
NARROWEST = 40  # columns; on a narrower terminal lines are longer than it rather than words cut to pieces
_GAP = 2
_ROOM_FOR_NAMES = 24
_ROOM_FOR_RULES = 18
_LAZY = "when it sees data"
_LEGEND = "w: a weight's mean; w₀: the weights as they are at conversion"
_SHALLOW = f"N(0, {SHALLOW_PRIOR.std}): the default prior where up to {SHALLOW} layers convert, around w₀ where more do"


@dataclass(frozen=True)
class Column:
    """One column of the table of converting layers."""

    header: str
    cells: Sequence[str]
    justify: Literal["left", "right"] = "left"
    style: str = ""

    @property
    def width(self) -> int:
        """The widest of its lines."""
        return max(cell_len(line) for cell in (self.header, *self.cells) for line in cell.splitlines() or [""])


def as_text(
    title: str, decisions: Decisions, totals: Totals, *, full: bool = False, width: int | None = None
) -> str:
    """The report as plain text without escape codes.

    Args:
        full: a line for every layer; otherwise repeated blocks are folded.
        width: the longest line; the terminal's width by default, and never less than 40.
    """
    width = max(width or shutil.get_terminal_size().columns, NARROWEST)
    file = io.StringIO()
    console = Console(file=file, width=width, color_system=None, force_terminal=False, legacy_windows=False)
    console.print(report(title, decisions, totals, width, full=full), markup=False, highlight=False, emoji=False)
    return "\n".join(line.rstrip() for line in file.getvalue().rstrip().splitlines())


def show(title: str, decisions: Decisions, totals: Totals, console: Console, *, full: bool = False) -> None:
    """Print the report: in colours on a terminal, as plain text anywhere else."""
    if console.is_terminal:
        width = max(console.width, NARROWEST)
        console.print(report(title, decisions, totals, width, full=full), highlight=False)
    else:
        console.file.write(as_text(title, decisions, totals, full=full, width=console.width) + "\n")
        console.file.flush()


def report(title: str, decisions: Decisions, totals: Totals, width: int, *, full: bool = False) -> RenderableType:
    """The report as something that rich prints, for a console of that width."""
    lines, others = converting(decisions, full), rest(decisions, full)
    notes = list(dict.fromkeys(note for line in lines for note in line.notes))
    columns = next(_layouts(lines, notes, width))
    parts: list[RenderableType] = [Text(printable(title), style="bold"), table(columns)]
    headers = [column.header for column in columns]
    parts += [] if "posterior" in headers else [_settings(lines, width)]
    parts += [] if "why" in headers or not notes else [_notes(notes, lines)]
    parts += [] if "input" in headers else [Text(text, style="dim") for text in descriptions(lines)]
    parts += [_rest(others)] if others else []
    parts += [Text(legend, style="dim") for legend in _legends(lines)]
    sums = summary(decisions, totals)
    parts.append(Text("; ".join(sums) if cell_len("; ".join(sums)) <= width else "\n".join(sums), style="bold"))
    return Group(*[line for part in parts for line in (part, Text(""))][:-1])


def _legends(lines: Sequence[Line]) -> list[str]:
    needed = any("w₀" in line.prior for line in lines)
    shallow = any(line.prior == str(SHALLOW_PRIOR) for line in lines)
    return [*([_LEGEND] if needed else []), *([_SHALLOW] if shallow else [])]


def _layouts(lines: Sequence[Line], notes: Sequence[str], width: int) -> Iterator[list[Column]]:
    """The table's columns in the forms that fit, the most detailed form first; the last form is made to fit."""
    marks = [_marks(lines, notes)] if notes else []
    one_rule = len({line.rule for line in lines}) == 1
    first = [_layer(lines), _types(lines), _rules(lines)]
    forms = [
        [*first, _parameters(lines, exact=True), *_words(lines), *_input(lines), *_why(lines)],
        [*first, _parameters(lines, exact=True), *_words(lines), *_why(lines)],
        [*first, _parameters(lines, exact=True), *_words(lines), *marks],
        [*first, _parameters(lines, exact=True), *marks],
        [*first, _parameters(lines, exact=False), *marks],
    ]
    if one_rule:
        forms.append([_layer(lines), _types(lines), _parameters(lines, exact=False), *marks])
    yield from (form for form in forms if _width(form) <= width)
    rules = [] if one_rule else [_rules(lines, _ROOM_FOR_RULES)]
    for stacked in (False, True):
        others = [_types(lines, stacked), *rules, _parameters(lines, exact=False), *marks]
        room = width - _width(others) - _GAP
        if room >= _ROOM_FOR_NAMES:
            yield [_layer(lines, room), *others]
    yield [_single_column(lines, notes, width)]


def _width(columns: Sequence[Column]) -> int:
    return sum(column.width for column in columns) + _GAP * (len(columns) - 1)


def _layer(lines: Sequence[Line], room: int | None = None) -> Column:
    names = [f"{line.name}{times(len(line.rows))}" for line in lines]
    return Column("layer", names if room is None else [_broken(name, room) for name in names])


def _single_column(lines: Sequence[Line], notes: Sequence[str], width: int) -> Column:
    """What a narrow terminal gets: all that there is to say of a layer, below its name."""
    cells = []
    for name, line in zip(_layer(lines).cells, lines, strict=True):
        counts = _LAZY if "Lazy" in line.becomes else f"{short(line.before)} → {short(line.after)}"
        marks = [f"note {notes.index(note) + 1}" for note in line.notes]
        below = [line.becomes, ", ".join(filter(None, [line.rule, counts, *marks]))]
        cells.append("\n".join([_broken(name, width), *(_broken(f"  {text}", width) for text in below)]))
    return Column("layer, type → new type, rule, parameters"[:width], cells)


def _broken(name: str, room: int) -> str:
    """A name over several lines: broken after a dot between parts or at a space, else at a comma, else anywhere."""
    done: list[str] = []
    while len(name) > room:
        cuts = [match.end() for match in re.finditer(r"(?<=\S)( |(?<!\.)\.(?!\.))", name) if match.end() <= room + 1]
        cut = max((cut for cut in cuts if len(name[:cut].rstrip()) <= room), default=0)
        cut = cut or name.rfind(",", 0, room) + 1 or room
        done.append(name[:cut].rstrip())
        name = f"  {name[cut:]}"
    return "\n".join([*done, name])


def _types(lines: Sequence[Line], stacked: bool = False) -> Column:
    types = [line.becomes.replace(" → ", "\n→ ") if stacked else line.becomes for line in lines]
    return Column("type → new type", types, style="green")


def _rules(lines: Sequence[Line], room: int | None = None) -> Column:
    return Column("rule", [_broken(line.rule, room or len(line.rule)) for line in lines], style="cyan")


def _parameters(lines: Sequence[Line], exact: bool) -> Column:
    number = "{:,}".format if exact else short
    befores, afters = [number(line.before) for line in lines], [number(line.after) for line in lines]
    left, right = max(map(len, befores)), max(map(len, afters))
    counts = [f"{before:>{left}} → {after:>{right}}" for before, after in zip(befores, afters, strict=True)]
    cells = [_LAZY if "Lazy" in line.becomes else count for line, count in zip(lines, counts, strict=True)]
    return Column("parameters", cells, "right")


def _words(lines: Sequence[Line]) -> list[Column]:
    return [Column("posterior", [line.posterior for line in lines]), Column("prior", [line.prior for line in lines])]


def _input(lines: Sequence[Line]) -> list[Column]:
    inputs = [line.input for line in lines]
    return [Column("input", inputs, style="dim")] if any(inputs) else []


def _why(lines: Sequence[Line]) -> list[Column]:
    notes = ["; ".join(line.notes) for line in lines]
    return [Column("why", notes, style="yellow")] if any(notes) else []


def _marks(lines: Sequence[Line], notes: Sequence[str]) -> Column:
    marks = [",".join(str(notes.index(note) + 1) for note in line.notes) for line in lines]
    return Column("note", marks, style="yellow")


def table(columns: Sequence[Column]) -> Table:
    """The columns as a table without a frame."""
    space = (0, _GAP - 1, 0, 0)
    table = Table(box=box.SIMPLE_HEAD, padding=space, pad_edge=False, show_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column.header, justify=column.justify, style=column.style, overflow="fold")
    for cells in zip(*(column.cells for column in columns), strict=True):
        table.add_row(*map(Text, cells))
    return table


def _settings(lines: Sequence[Line], width: int) -> RenderableType:
    """The posterior and prior of each rule."""
    settings = list(dict.fromkeys((line.rule, line.posterior, line.prior) for line in lines))
    rules, posteriors, priors = zip(*settings, strict=True)
    columns = [Column("rule", rules, style="cyan"), Column("posterior", posteriors), Column("prior", priors)]
    if _width(columns) <= width:
        return table(columns)
    return Text("\n".join(f"{rule}: posterior {posterior}; prior {prior}" for rule, posterior, prior in settings))


def _notes(notes: Sequence[str], lines: Sequence[Line]) -> Table:
    table = _grid()
    for number, note in enumerate(notes, start=1):
        count = sum(len(line.rows) for line in lines if note in line.notes)
        table.add_row(Text(f"note {number}", style="yellow"), Text(f"{note} ({layer_count(count)})"))
    return table


def _grid() -> Table:
    table = Table.grid(padding=(0, _GAP, 0, 0), pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    return table


_STYLES = {"keeps": "dim", "blocked": "red", "adjusted": "yellow"}


def _rest(others: Sequence[Rest]) -> Table:
    table = _grid()
    for group in others:
        table.add_row(Text(group.verb, style=_STYLES[group.verb]), Text(f"{group.what}: {group.why}"))
        if group.names:
            table.add_row("", Text(", ".join(group.names), style="dim"))
    return table


def as_html(title: str, decisions: Decisions, totals: Totals) -> str:
    """The report as an HTML fragment for a notebook: a table that scrolls where it is wider than the page."""
    lines, others = converting(decisions, full=False), rest(decisions, full=False)
    columns = [_layer(lines), _types(lines), _rules(lines), _parameters(lines, exact=True)]
    columns += [*_words(lines), *_why(lines)]
    head = "".join(f"<th style='text-align:left'>{escape(column.header)}</th>" for column in columns)
    rows = zip(*(column.cells for column in columns), strict=True)
    body = "".join(f"<tr>{''.join(map(_cell, columns, cells))}</tr>" for cells in rows)
    items = "".join(f"<li>{_item(group)}</li>" for group in others)
    remarks = [*descriptions(lines), *_legends(lines)]
    small = "".join(f"<p><small>{escape(remark)}</small></p>" for remark in remarks)
    return (
        f"<p><b>{escape(printable(title))}</b></p><div style='overflow-x:auto'>"
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
        f"<ul>{items}</ul>{small}<p><b>{escape('; '.join(summary(decisions, totals)))}</b></p>"
    )


def _cell(column: Column, text: str) -> str:
    wrap = "normal;min-width:20em" if column.header == "why" else "nowrap"
    return f"<td style='text-align:left;white-space:{wrap}'>{escape(text)}</td>"


def _item(group: Rest) -> str:
    names = f"<br><small>{escape(', '.join(group.names))}</small>" if group.names else ""
    return f"<b>{group.verb}</b> {escape(f'{group.what}: {group.why}')}{names}"
