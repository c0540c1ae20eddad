"""What all figures have in common: size, colours, type, and how one becomes part of a page."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from html import escape
from typing import TYPE_CHECKING, Any

from ..errors import UsageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, FAINT = "#1b1d21", "#c9ccd1"
COLORS = ("#0072b2", "#d55e00", "#009e73", "#9a6fb0")  # Okabe & Ito 2008: told apart by the colour-blind too
SIZE = (4.4, 2.75)  # inches: on a phone the text keeps its size
_IN_PAGE = {INK: "currentColor", FAINT: "var(--line)"} | {
    color: f"var(--c{number})" for number, color in enumerate(COLORS, 1)
}
_SETTINGS = {
    "figure.figsize": SIZE,
    "figure.facecolor": "none",
    "figure.constrained_layout.use": True,
    "axes.facecolor": "none",
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.5,
    "font.size": 9,
    "font.family": ["DejaVu Sans"],
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.6,
    "path.simplify": False,  # it would take bars for noise
    "patch.linewidth": 0,
    "text.color": INK,
    "text.parse_math": False,  # a layer's name may hold a $
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "bayesify",
}

def figure(draw: Callable[..., None]) -> Callable[..., Figure]:
    """Makes of a function that draws on an empty Figure, its first argument, one that returns a Figure of its own."""

    def drawn(*args: Any, **kwargs: Any) -> Figure:
        with _matplotlib().rc_context(_SETTINGS):
            from matplotlib.figure import Figure

            made = Figure()
            draw(made, *args, **kwargs)
            _without_math(made)
            return made

    return drawn


def as_svg(made: Any, caption: str) -> str:
    """The figure as an SVG element for a page: its colours are the page's, in light and in dark."""
    file = io.StringIO()
    with _matplotlib().rc_context(_SETTINGS):
        made.savefig(file, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r"\s*\n\s*", " ", text)
    text = re.sub(r"<[^>]*>", _rounded, text)
    for color, name in _IN_PAGE.items():
        text = text.replace(color, name)
    head = re.sub(r'\s(width|height|xmlns:xlink|version)="[^"]*"', "", text[: text.index(">")])
    return f'{head} role="img" aria-label="{escape(caption)}"{text[text.index(">") :]}'


def log_axis(axes: Any, low: float, high: float) -> None:
    """A logarithmic y axis from `low` to `high`, with labels that are plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set(yscale="log", ylim=(low, high))
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0,) if high > 50 * low else (1.0, 2.0, 5.0), numticks=8))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _rounded(tag: re.Match[str]) -> str:
    """A tag with its lengths in tenths of a point; text between tags keeps its digits."""
    return re.sub(r"(\d\.\d)\d+", r"\1", tag[0])


def _without_math(made: Any) -> None:
    for text in made.findobj(lambda artist: hasattr(artist, "set_parse_math")):
        text.set_parse_math(False)


def _matplotlib() -> Any:
    try:
        import matplotlib
    except ImportError:
        raise UsageError('figures need matplotlib, which is not installed: pip install "bayesify[report]"') from None
    return matplotlib
