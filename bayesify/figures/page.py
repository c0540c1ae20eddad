"""An inspection as one page of HTML: self-contained, without scripts, for a phone, a desk and paper."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from html import escape
from typing import Any

from ..escaping import printable
from ..findings import Finding, Performance, Quality
from ..report.posteriors import about, number
from ..uncertainty.inspect import Inspection
from . import of_posteriors, of_predictions
from .page_style import CSS
from .page_tree import as_tree
from .style import as_svg

_TITLES = {
    "not finite": "Not finite",
    "unreached": "Never reached",
    "ruins": "Noise ruins",
    "optimizer": "Scales left behind",
    "prior": "At its prior",
    "start": "Not fitted",
    "noisy": "More noise than signal",
    "uncalibrated": "Not calibrated",
    "useless": "Noise does not help",
}
_GRAVE = ("not finite", "unreached", "ruins", "optimizer")

_PRUNING = (
    "Signal to noise of the weights that pruning takes first, of the whole network (thick) and of each posterior; and "
    "what it costs to prune so many."
)

Draw = Callable[[Inspection], Any]


def page(found: Inspection) -> str:
    """The page, as text. What is most urgent stands first.

    Raises:
        UsageError: matplotlib is not installed.
    """
    name = _text(found.model)
    parts = [_header(found), _attention(found), _numbers(found), _posteriors(found), _predictions(found)]
    parts += [as_tree(found), _made_by(found)]
    body = "\n".join(part for part in parts if part)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{name}: posteriors</title><style>{CSS}</style></head>\n<body><main>\n{body}\n</main></body></html>\n"
    )


def _header(found: Inspection) -> str:
    file = "" if found.origin is None else f"<p>{_text(found.origin.file)}</p>"
    return f"<header><p class=kind>bayesify inspect</p><h1>{_text(found.model)}</h1>{file}</header>"


def _attention(found: Inspection) -> str:
    if not found.findings:
        return "<section><h2>What needs attention</h2><p class=good>Nothing does.</p></section>"
    items = "".join(map(_finding, found.findings))
    return f"<section><h2>What needs attention</h2><ol class=findings>{items}</ol></section>"


def _finding(finding: Finding) -> str:
    grave = " class=grave" if finding.kind in _GRAVE else ""
    count = f"{len(finding.posteriors)} ×" if len(finding.posteriors) > 1 else ""
    return (
        f"<li{grave}><h3>{_TITLES[finding.kind]}</h3><p><b>{count} {_text(about(finding))}</b>: {_text(finding.what)}."
        f"</p><p class=remedy>{_text(finding.remedy)}.</p></li>"
    )


def _numbers(found: Inspection) -> str:
    pruned = sum(state.pruned for state in found.posteriors)
    numbers = [
        ("KL(q‖p)", f"{found.kl:,.0f} nats" if math.isfinite(found.kl) else f"{number(found.kl)} nats"),
        ("for each weight", f"{number(found.kl / max(found.weights, 1))} nats"),
        ("weights with a posterior", f"{found.weights:,}"),
        ("parameters without", f"{found.plain_parameters:,}"),
        ("no more signal than noise", f"{found.free:.1%}"),
    ]
    numbers += [("pruned already", f"{pruned:,}")] if pruned else []
    if found.quality is not None:
        best = found.quality.performances[-1]
        numbers += [(f"NLL, {found.quality.examples:,} targets", f"{best.nll:.4f}"), _headline(best)]
    cells = "".join(f"<div><dt>{_text(name)}</dt><dd>{_text(value)}</dd></div>" for name, value in numbers)
    return f"<section><h2>In numbers</h2><dl class=numbers>{cells}</dl></section>"


def _headline(way: Performance) -> tuple[str, str]:
    return ("accuracy", f"{way.accuracy:.1%}") if way.accuracy is not None else ("RMSE", number(way.rmse or 0.0))


def _posteriors(found: Inspection) -> str:
    figures: list[tuple[Draw, str]] = [
        (of_posteriors.kl, "KL of each posterior from its prior. Near zero, the data have said nothing."),
        (of_posteriors.noise, "Noise beside the weights, over depth: the median, half, and 90 % of the weights."),
        (of_posteriors.pruning, _PRUNING),
    ]
    if any(state.prior_ratio for state in found.posteriors):
        figures.append((of_posteriors.prior_ratio, "Noise beside the prior's: below 1 the data have narrowed it."))
    return f"<section><h2>Posteriors</h2>{_figures(found, figures)}</section>"


def _predictions(found: Inspection) -> str:
    quality = found.quality
    if quality is None:
        return ""
    figures: list[tuple[Draw, str]] = []
    if quality.task == "classification":
        figures.append((of_predictions.reliability, "Reliability: on the dashed line, confidence is what it says."))
    figures.append((of_predictions.risk_coverage, "Error of the examples that the model is most certain of."))
    if quality.separation is not None:
        figures.append((of_predictions.separation, "Uncertainty about the model's own data, and about others."))
    figures.append((of_predictions.coverage, "Coverage: on the dashed line or above it, a 90 % set holds 90 %."))
    figures.append((of_predictions.samples, "More samples help until the line is flat."))
    return f"<section><h2>Predictions</h2>{_performances(quality)}{_figures(found, figures)}</section>"


def _performances(quality: Quality) -> str:
    columns = [("NLL", "nll"), ("accuracy", "accuracy"), ("RMSE", "rmse"), ("calibration error", "ece")]
    shown = [(head, key) for head, key in columns if getattr(quality.performances[0], key) is not None]
    head = "".join(f"<th scope=col>{head}</th>" for head, _ in shown)
    rows = "".join(_row(way, [key for _, key in shown]) for way in quality.performances)
    told = f"{quality.examples:,} targets, {quality.samples} samples of the posterior"
    return f"<p>{told}.</p><div class=wide><table><tr><th></th>{head}</tr>{rows}</table></div>"


def _row(way: Performance, keys: list[str]) -> str:
    cells = "".join(f"<td>{getattr(way, key):.4f}</td>" for key in keys)
    return f"<tr><th scope=row>{_text(way.name)}</th>{cells}</tr>"


def _figures(found: Inspection, figures: list[tuple[Draw, str]]) -> str:
    drawn = (
        f"<figure>{as_svg(draw(found), caption)}<figcaption>{_text(caption)}</figcaption></figure>"
        for draw, caption in figures
    )
    return f"<div class=figures>{''.join(drawn)}</div>"


def _made_by(found: Inspection) -> str:
    rows = list(_origin(found))
    if not rows:
        return ""
    cells = "".join(f"<div><dt>{_text(name)}</dt><dd>{value}</dd></div>" for name, value in rows)
    return f"<section><h2>Where this comes from</h2><dl class=origin>{cells}</dl></section>"


def _origin(found: Inspection) -> Iterator[tuple[str, str]]:
    """(name, HTML) of what is known of the file."""
    from ..policy.yaml_file import as_yaml

    origin = found.origin
    if found.calibration is not None:
        yield "calibration", f"<pre>{_text(repr(found.calibration), keep=_LINES)}</pre>"
    if origin is None:
        return
    policy = (origin.plan or {}).get("policy")
    if isinstance(policy, dict):
        text = f"<pre>{_text(as_yaml(policy), keep=_LINES)}</pre>"
        yield "policy", f"<details><summary>as it was applied</summary>{text}</details>"
    if origin.versions:
        yield "written by", _text(", ".join(f"{name} {version}" for name, version in origin.versions.items()))
    if origin.checksum:
        yield "SHA-256", f"<code>{_text(origin.checksum)}</code>"
    if origin.command:
        yield "this page", f"<code>{_text(origin.command)}</code>"


_LINES = "\n"


def _text(value: object, keep: str = "") -> str:
    return escape(printable(value, keep=keep))
