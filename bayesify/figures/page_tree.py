"""The plan on the page: the model's posteriors as a tree that folds, a histogram for each; and what has none."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from html import escape

from ..escaping import printable
from ..findings import PosteriorState
from ..report.lines import layer_count
from ..report.posteriors import count, number
from ..uncertainty.inspect import Inspection

_HIGH = 16  # units of the histogram's height
_OPEN = 12  # posteriors: a tree of no more is open


@dataclass
class _Branch:
    """What stands below one part of a name, in the model's order."""

    children: dict[str, _Branch | PosteriorState] = field(default_factory=dict)

    def branch(self, part: str) -> _Branch:
        child = self.children.setdefault(part, _Branch())
        assert isinstance(child, _Branch)
        return child

    def states(self) -> list[PosteriorState]:
        own = (child.states() if isinstance(child, _Branch) else [child] for child in self.children.values())
        return [state for states in own for state in states]


def as_tree(found: Inspection) -> str:
    """The section."""
    root = _Branch()
    for state in found.posteriors:
        *path, last = state.name.split(".")
        branch = root
        for part in path[:-1]:
            branch = branch.branch(part)
        branch.children[".".join([*path[-1:], last])] = state
    few = len(found.posteriors) <= _OPEN
    legend = "The histogram is that of std/|w|, from 0.0001 to 100: at the right, noise is larger than the weight."
    return (
        f"<section><h2>Layer by layer</h2><div class=tree>{_inside(root, few)}</div>{_rest(found)}"
        f"<p class=soft>{legend}</p></section>"
    )


def _inside(branch: _Branch, opened: bool) -> str:
    return "".join(
        _folded(name, child, opened) if isinstance(child, _Branch) else _leaf(name, child)
        for name, child in branch.children.items()
    )


def _folded(name: str, branch: _Branch, opened: bool) -> str:
    while len(branch.children) == 1 and isinstance(only := next(iter(branch.children.values())), _Branch):
        name, branch = f"{name}.{next(iter(branch.children))}", only
    states = branch.states()
    kl = f"KL {count(sum(state.kl for state in states))}"
    head = f"<b>{_text(name)}</b><span>{layer_count(len(states))}</span><span>{kl}</span>{_histogram(states)}"
    return f"<details{' open' if opened else ''}><summary>{head}</summary>{_inside(branch, opened)}</details>"


def _leaf(name: str, state: PosteriorState) -> str:
    head = (
        f"<b>{_text(name)}</b><span>std/|w| {number(state.noise[2])}</span><span>KL {count(state.kl)}</span>"
        f"{_histogram([state])}"
    )
    rows = "".join(f"<div><dt>{_text(key)}</dt><dd>{_text(value)}</dd></div>" for key, value in _numbers(state))
    return f"<details><summary>{head}</summary><dl class=leaf>{rows}</dl></details>"


def _numbers(state: PosteriorState) -> Iterable[tuple[str, str]]:
    yield "class", state.type
    yield "posterior", state.posterior
    yield "prior", state.prior
    yield "weights", f"{state.weights:,}" + (f", {state.pruned:,} pruned" if state.pruned else "")
    yield "KL", f"{number(state.kl)} nats"
    yield "KL for each weight", number(state.kl_per_weight)
    yield "std/|w|, 5 to 95 %", f"{number(state.noise[0])} to {number(state.noise[4])}"
    if state.prior_ratio is not None:
        yield "std/prior's, 5 to 95 %", f"{number(state.prior_ratio[0])} to {number(state.prior_ratio[4])}"
    if state.from_prior is not None:
        yield "from the prior's mean", f"{number(state.from_prior)} of its std"
    if state.moved is not None:
        yield "moved since conversion", f"{state.moved:.2%}"
    yield "no more signal than noise", f"{state.free:.1%}"
    if state.reached is not None:
        yield "reached", "yes" if state.reached else "no"
    if state.scale_moved is not None:
        yield "std fitted", "yes" if state.scale_moved else "no"


def _histogram(states: list[PosteriorState]) -> str:
    counts = [sum(column) for column in zip(*(state.histogram for state in states), strict=True)]
    most = max(counts) or 1
    heights = [-(-_HIGH * count // most) for count in counts]
    steps = "".join(f"V{_HIGH - height}h1" for height in heights)
    return (
        f'<svg class=h viewBox="0 0 {len(counts)} {_HIGH}" preserveAspectRatio="none" aria-hidden="true">'
        f'<path d="M0 {_HIGH}{steps}V{_HIGH}z"/></svg>'
    )


def _rest(found: Inspection) -> str:
    """What does not convert, by class and reason, as far as the file has its plan; else how much has no posterior."""
    rows = found.origin.plan.get("rows") if found.origin is not None and found.origin.plan is not None else None
    groups: dict[tuple[str, str, str], list[Mapping[str, object]]] = {}
    for row in rows if isinstance(rows, list) else []:
        if isinstance(row, Mapping) and row.get("verb") != "converts":
            key = (str(row.get("verb")), str(row.get("type")), str(row.get("reason") or ""))
            groups.setdefault(key, []).append(row)
    if not groups:
        return ""
    items = "".join(
        f"<li>{_text(verb)}: {len(group)} {_text(kind)}{f', {_text(reason)}' if reason else ''}</li>"
        for (verb, kind, reason), group in groups.items()
    )
    return f"<ul class=rest>{items}</ul>"


def _text(value: object) -> str:
    return escape(printable(value))
