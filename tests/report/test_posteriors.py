"""How an inspection looks: no wider than asked, folded where there are many, nothing cut, escaped."""

from __future__ import annotations

import io
from html.parser import HTMLParser
from typing import Any

import pytest
from rich.console import Console
from torch import nn

import bayesify
from bayesify.report.posteriors import number, show, sparkline

DEEP = nn.Sequential(*[nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(60)])
NAMES = nn.ModuleDict({"a<b>\x1b[31m": nn.Linear(2, 2), "c": nn.Linear(2, 2)})


def test_a_table_with_a_line_for_each_posterior() -> None:
    found = bayesify.inspect(bayesify.convert(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))))
    text = repr(found)
    assert text.startswith("Sequential\n\nstart")
    lines = [line.split() for line in text.splitlines() if line.startswith(("0.weight", "2.weight"))]
    assert [line[:2] for line in lines] == [["0.weight", "32"], ["2.weight", "24"]]
    assert "0.2" in lines[0]
    assert f"KL {found.kl:.3g} nats" in text.replace("\n", " ")


@pytest.mark.parametrize("width", [40, 60, 80, 120, 200])
def test_no_line_is_wider_than_asked(width: int) -> None:
    found = bayesify.inspect(bayesify.convert(DEEP))
    lines = found.as_text(width=width).splitlines()
    assert max(map(len, lines)) <= width
    row = next(at for at, line in enumerate(lines) if line.startswith("posterior ")) + 2
    assert lines[row].startswith("{0..59}.0.weight ×60  ")
    assert lines[row + 1] == ""  # cells are left out, and never cut


def test_many_are_folded_and_full_is_full() -> None:
    found = bayesify.inspect(bayesify.convert(DEEP))
    assert "{0..59}.0.weight ×60" in repr(found)
    assert "  960 " in found.as_text(width=100)
    assert found.as_text(full=True, width=100).count(".0.weight ") >= 60


def test_names_are_escaped_in_text_and_in_html() -> None:
    model = bayesify.convert(NAMES, {"method": "flipout", "rules": [{"targets": ["*"]}]})
    found = bayesify.inspect(model)
    assert "\x1b" not in repr(found)
    html = found._repr_html_()
    assert "<b>\\x1b" not in html
    assert "a&lt;b&gt;\\x1b[31m.weight" in html
    assert balanced(html)


def balanced(html: str) -> bool:
    parser = Balanced()
    parser.feed(html)
    parser.close()
    return not parser.open


class Balanced(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag not in ("br", "meta"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_nothing_is_wrong_in_colours_too() -> None:
    file = io.StringIO()
    show(bayesify.inspect(bayesify.convert(DEEP)), Console(file=file, force_terminal=True, width=100))
    assert "\x1b[" in file.getvalue()


def test_sparklines_and_numbers() -> None:
    counts = [0] * 24
    counts[8] = counts[9] = 4
    counts[12], counts[0] = 4, 1
    assert sparkline(counts) == "▂ █ ▅     "
    assert [number(value) for value in (0.0, 0.01234, 1.2e-5, float("inf"), 12345.0)] == [
        "0", "0.0123", "1.2e-05", "∞", "1.2e+04"
    ]  # fmt: skip
