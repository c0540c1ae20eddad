"""What a report on a plan says, in whatever form: decisions folded into lines, their words and their numbers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from ..decision import Decision
from ..escaping import printable
from ..nn.settings import Settings
from .fold_names import NameGroup, fold, fold_names

MOST_LINES = 40  # of converting layers: they fit two screens with what else the report says
_NO_MATRIX = "has no weight matrix"
_NAMELESS = "(the model itself)"


@dataclass(frozen=True)
class Line:
    """Layers that convert alike: they differ in their names and numbers only.

    Attributes:
        name: their names as one, with aliases.
        rows: their decisions; what is said of the first holds for all.
        notes: what the reader should be warned of.
        before, after: their parameters, summed.
    """

    name: str
    rows: tuple[Decision, ...]
    notes: tuple[str, ...]
    before: int
    after: int

    @property
    def becomes(self) -> str:
        """`Conv2d → FlipoutConv2d`."""
        return f"{self.rows[0].type} → {self.rows[0].becomes}"

    @property
    def input(self) -> str:
        """How the layers are called, as far as they agree."""
        texts = ["; ".join(row.descriptions) for row in self.rows]
        return common(texts) if len(set(map(_pattern, texts))) == 1 else ""

    @property
    def rule(self) -> str:
        """The rule that owns the layers."""
        return self.rows[0].rule or ""

    @property
    def posterior(self) -> str:
        """The posterior, with what else differs from the defaults."""
        return posterior_text(self.rows[0].settings)

    @property
    def prior(self) -> str:
        """The prior."""
        settings = self.rows[0].settings
        return str(settings.prior) if settings else ""


@dataclass(frozen=True)
class Rest:
    """Modules that do not convert, all for the same reason.

    Attributes:
        verb: keeps, blocked or adjusted.
        what: how many of which classes, with how many parameters.
        why: the reason.
        names: their names, folded; empty where nobody needs them (normalization layers).
    """

    verb: str
    what: str
    why: str
    names: tuple[str, ...]


def converting(decisions: Sequence[Decision], full: bool) -> list[Line]:
    """The layers that convert: folded, or one line each."""
    rows = [_printable(row) for row in decisions if row.verb == "converts"]
    if full:
        return [_line(row.name, (row,)) for row in rows]
    return [_line(group.name, group.items) for group in _fold(rows)]


def rest(decisions: Sequence[Decision], full: bool) -> list[Rest]:
    """All that does not convert, by reason: what bayesify adjusts or cannot convert first, what has no weights last."""
    groups: dict[tuple[str, str], list[Decision]] = {}
    for row in map(_printable, decisions):
        if row.verb != "converts":
            why = "" if _has_no_matrix(row) else _pattern(_why(row))
            groups.setdefault((row.verb, why), []).append(row)
    order = ("adjusted", "blocked", "keeps")
    ordered = sorted(groups.items(), key=lambda group: (order.index(group[0][0]), group[0][1] == ""))
    return [_rest(rows, full) for _, rows in ordered]


def descriptions(lines: Sequence[Line]) -> list[str]:
    """How the layers are called, one sentence for those that differ in numbers only; a single call is not told."""
    told: dict[str, list[str]] = {}
    for text in (text for line in lines for row in line.rows for text in row.descriptions):
        if not text.startswith("called once"):
            told.setdefault(_pattern(text), []).append(text)
    return [f"{common(texts)} ({layer_count(len(texts))})" for texts in told.values()]


def summary(decisions: Sequence[Decision], counts: Mapping[str, int]) -> tuple[str, str]:
    """`21 layers convert, 20 kept` and `parameters 11,689,512 → 23,368,424`."""
    converts = f"{counts['converts']:,} {'layer converts' if counts['converts'] == 1 else 'layers convert'}"
    others = [f"{counts[verb]:,} {said}" for verb, said in _SAID.items() if counts[verb]]
    parameters = f"parameters {counts['parameters_before']:,} → {counts['parameters_after']:,}"
    lazy = ", and those that lazy layers will have" if any("Lazy" in row.type for row in decisions) else ""
    return ", ".join([converts, *others]), f"{parameters}{lazy}"


_SAID = {"keeps": "kept", "blocked": "blocked", "adjusted": "adjusted"}


def posterior_text(settings: Settings | None) -> str:
    """`additive, std 0.033·|w|`, and what differs from the usual."""
    if settings is None:
        return ""
    extras = [
        "biases too" if settings.bias == "variational" else "",
        "signs per position" if settings.signs == "position" else "",
    ]
    return ", ".join(filter(None, [str(settings.posterior), *extras]))


def short(number: int) -> str:
    """A count in at most six characters: `9,408`, `36.9 K`, `2.36 M`."""
    if number < 10_000:
        return f"{number:,}"
    power = next((power for power in (1, 2, 3) if number < 999.5 * 1000**power), 4)
    scaled = number / 1000**power
    digits = 2 if scaled < 9.995 else 1 if scaled < 99.95 else 0
    return f"{scaled:,.{digits}f} {'KMBT'[power - 1]}"


def times(count: int) -> str:
    """` ×12`, or nothing for a single layer."""
    return f" ×{count}" if count > 1 else ""


def layer_count(number: int) -> str:
    """`1 layer`, `2 layers`."""
    return f"{number} layer" if number == 1 else f"{number} layers"


def _printable(row: Decision) -> Decision:
    """The decision with its texts escaped: a model's names may hold what a terminal acts on."""
    return replace(
        row,
        name=printable(row.name),
        type=printable(row.type),
        becomes=row.becomes and printable(row.becomes),
        rule=row.rule and printable(row.rule),
        reason=row.reason and printable(row.reason),
        aliases=tuple(map(printable, row.aliases)),
        notes=tuple(map(printable, row.notes)),
    )


def _fold(rows: Sequence[Decision]) -> list[NameGroup[Decision]]:
    return fold(rows, lambda row: row.name, _key, lambda row: row.parameters_before, most=MOST_LINES)


def _key(row: Decision) -> tuple[object, ...]:
    """What the layers of a line agree in: all that it shows, except for names and numbers."""
    shown = row.settings and (row.settings.posterior, row.settings.prior, row.settings.bias, row.settings.signs)
    notes = tuple(map(_pattern, row.warnings))
    return row.verb, row.type, row.becomes, row.rule, _pattern(row.reason or ""), shown, row.aliases, notes


def _line(name: str, rows: tuple[Decision, ...]) -> Line:
    notes = tuple(common(texts) for texts in zip(*(row.warnings for row in rows), strict=True))
    aliases = fold_names(rows[0].aliases)
    also = f" (= {', '.join(aliases)})" if aliases else ""
    before, after = sum(row.parameters_before for row in rows), sum(row.parameters_after for row in rows)
    return Line(f"{name or _NAMELESS}{also}", rows, notes, before, after)


def _rest(rows: Sequence[Decision], full: bool) -> Rest:
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in Counter(row.type for row in rows).items())
    parameters = sum(row.parameters_before for row in rows)
    what = f"{kinds} ({short(parameters)} parameters)" if parameters else kinds
    groups = _fold(rows)
    folded = [_counted(group, len(groups)) for group in groups]
    names = [_line(row.name, (row,)).name for row in rows] if full else folded
    if _has_no_matrix(rows[0]):
        return Rest(rows[0].verb, what, "no weight matrix", tuple(names) if full else ())
    return Rest(rows[0].verb, what, common(map(_why, rows)), tuple(names))


def _why(row: Decision) -> str:
    """The reason; of what is adjusted, also what stays as it was."""
    return "; ".join([row.reason or "", *(row.notes if row.verb == "adjusted" else ())])


def _counted(group: NameGroup[Decision], groups: int) -> str:
    return _line(group.name, group.items).name + (times(len(group.items)) if groups > 1 else "")


def _has_no_matrix(row: Decision) -> bool:
    return row.verb == "keeps" and (row.reason or "").endswith(_NO_MATRIX)


def _pattern(text: str) -> str:
    return re.sub(r"\d+", "#", text)


def common(texts: Iterable[str]) -> str:
    """Texts that differ in numbers only, as one text with `*` where they differ."""
    split = [re.split(r"(\d+)", text) for text in texts]
    return "".join(parts[0] if len(set(parts)) == 1 else "*" for parts in zip(*split, strict=True))
