"""The page: whole, small, without scripts, escaped; and in a browser, where there is one: wide, narrow, light, dark."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import bayesify
from bayesify.findings import Origin
from bayesify.policy.policy import Policy

from .browser import CHROMIUM, browser

pytest.importorskip("matplotlib")
from bayesify.figures.page import page

NASTY = "<script>alert(1)</script>&\x1b[31m\u202e\"'$x_1$"


class Page(HTMLParser):
    """Tags that must balance, and what the page says."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.words: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data)


def inspected() -> bayesify.Inspection:
    torch.manual_seed(0)
    labels = torch.arange(60) % 3
    x = torch.nn.functional.one_hot(labels, 4).float() + 0.5 * torch.randn(60, 4)
    body = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU())
    model: Any = bayesify.convert(nn.Sequential(body, nn.BatchNorm1d(8), nn.Linear(8, 3)))
    plan = bayesify.plan(nn.Sequential(body, nn.BatchNorm1d(8), nn.Linear(8, 3))).to_dict()
    found = bayesify.inspect(model, [(x, labels)], task="classification", samples=4, ood=torch.randn(40, 4))
    origin = Origin(f"{NASTY}.pt", "0" * 64, {"bayesify": "0.1.0", "torch": NASTY}, plan, f"bayesify inspect {NASTY}")
    return replace(found, model=NASTY, origin=origin)


@pytest.fixture(scope="module")
def text() -> str:
    return page(inspected())


def test_it_is_whole_and_in_order(text: str) -> None:
    found = Page(text)
    said = " ".join(found.words)
    headings = ["What needs attention", "In numbers", "Posteriors", "Predictions", "Layer by layer"]
    headings.append("Where this comes from")
    places = [said.index(heading) for heading in headings]
    assert places == sorted(places)
    for word in ("Not fitted", "keeps: 1 BatchNorm1d", "bayesify.fit_std", "0" * 64, "method: flipout", "accuracy"):
        assert word in said, word
    assert text.count("<figure>") == 9


def test_it_stands_alone(text: str) -> None:
    found = Page(text)
    assert "script" not in found.tags
    assert not any(name.startswith("on") for name, _ in found.attributes)
    links = [value for name, value in found.attributes if name in ("src", "href", "xlink:href")]
    assert all(value is not None and value.startswith("#") for value in links)
    assert not re.search(r"url\((?!#)|@import|https?://(?!www\.w3\.org)", text)


def test_names_are_escaped(text: str) -> None:
    assert "<script" not in text
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "&lt;script&gt;alert(1)" in text


def test_figures_have_the_colours_of_the_page_and_words_with_all_digits(text: str) -> None:
    drawings = "".join(re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL))
    assert "var(--c1)" in drawings
    assert "currentColor" in drawings
    colours = set(re.findall(r"#[0-9a-f]{6}", drawings))
    assert colours <= {"#ffffff", "#000000"}
    assert "mathdefault" not in drawings


def test_a_network_of_two_hundred_layers_is_small() -> None:
    layers = [nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for _ in range(200)]
    text = page(bayesify.inspect(bayesify.convert(nn.Sequential(*layers))))
    assert len(text.encode()) < 500_000
    Page(text)


def test_the_policy_and_the_plan_in_a_notebook() -> None:
    policy = Policy.from_dict({"rules": [{"name": "<b>", "targets": ["*"]}]})
    assert "&lt;b&gt;" in policy._repr_html_()
    assert Policy.parse(policy.to_dict()).to_yaml() == policy.to_yaml()


@pytest.mark.skipif(CHROMIUM is None, reason="needs a Chromium")
def test_in_a_browser(text: str, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text(text)
    with browser(tmp_path / "profile") as tab:
        for width, dark in ((1200, False), (375, True)):
            tab.open(path, width, dark=dark)
            assert tab.ask("document.documentElement.scrollWidth") <= width
            assert tab.ask(_OUTSIDE) == []
            colours = tab.ask("[getComputedStyle(document.body).backgroundColor, "
                              "getComputedStyle(document.querySelector('figure text')).fill]")  # fmt: skip
            assert colours == (_DARK if dark else _LIGHT)
            closed = tab.ask("document.querySelectorAll('details:not([open])').length")
            assert closed > 0
            place = tab.ask(_FIRST_CLOSED)
            tab.click(place["x"] + 20, place["y"] + place["height"] / 2)
            assert tab.ask("document.querySelectorAll('details:not([open])').length") == closed - 1
            assert tab.ask("document.querySelectorAll('.leaf')[0].getBoundingClientRect().height") > 20
            tab.ask("document.querySelectorAll('details').forEach(one => { one.open = true })")
            assert tab.ask("document.documentElement.scrollWidth") <= width
            assert tab.ask(_OUTSIDE) == []


_DARK, _LIGHT = ["rgb(21, 23, 26)", "rgb(230, 231, 233)"], ["rgb(255, 255, 255)", "rgb(27, 29, 33)"]
# texts of figures that reach outside of their figure, or lie on each other
_OUTSIDE = """[...document.querySelectorAll('figure')].flatMap(figure => {
  const frame = figure.getBoundingClientRect();
  const texts = [...figure.querySelectorAll('text')].map(one => [one.textContent, one.getBoundingClientRect()]);
  const outside = texts.filter(([_, box]) => box.left < frame.left - 1 || box.right > frame.right + 1);
  const crossed = texts.filter(([_, a], i) => texts.some(([__, b], j) => j > i && a.left < b.right - 1 &&
    b.left < a.right - 1 && a.top < b.bottom - 3 && b.top < a.bottom - 3));
  return [...outside, ...crossed].map(([word]) => word);
})"""
_FIRST_CLOSED = """(() => { const one = document.querySelector('.tree details:not([open]) > summary');
  one.scrollIntoView({block: 'center'});
  const {x, y, height} = one.getBoundingClientRect(); return {x, y, height}; })()"""
