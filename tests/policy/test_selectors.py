"""Selectors: each kind by example, and globs against a matcher that is too simple to be wrong."""

from __future__ import annotations

import contextlib
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from bayesify.policy.selectors import Candidate, SelectorError, compiled, picked

NAMES = (
    "",
    "conv1",
    "layer1",
    "layer1.0",
    "layer1.0.conv1",
    "layer1.0.down.0",
    "layer10",
    "layer10.0.conv1",
    "head.conv1",
)


def covered(text: str) -> list[str]:
    selector = compiled(text)
    return [name for name in NAMES if selector.covers(name)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("conv1", ["conv1"]),
        ("layer1", ["layer1", "layer1.0", "layer1.0.conv1", "layer1.0.down.0"]),
        ("layer1.0.down", ["layer1.0.down.0"]),
        ("**", list(NAMES)),
        ("*", [name for name in NAMES if name]),
        ("**.conv1", ["conv1", "layer1.0.conv1", "layer10.0.conv1", "head.conv1"]),
        ("*.conv1", ["head.conv1"]),
        ("layer1.**", ["layer1", "layer1.0", "layer1.0.conv1", "layer1.0.down.0"]),
        ("layer1.**.conv?", ["layer1.0.conv1"]),
        ("layer1*.*.conv1", ["layer1.0.conv1", "layer10.0.conv1"]),
        ("layer?.**.down", ["layer1.0.down.0"]),
        ("lay**conv1", ["layer1.0.conv1", "layer10.0.conv1"]),
        ("[ch]*", ["conv1", "head.conv1"]),
        ("[!l]*", ["conv1", "head.conv1"]),
        ("la**.**conv1", ["layer1.0.conv1", "layer10.0.conv1"]),
        ("layer1.**.**", ["layer1", "layer1.0", "layer1.0.conv1", "layer1.0.down.0"]),
        ("h**.**1", ["head.conv1"]),
        ("conv**.**1", []),
        ("**.**.conv[0-9]", ["conv1", "layer1.0.conv1", "layer10.0.conv1", "head.conv1"]),
        ("re:layer1", ["layer1"]),
        ("re:layer1.*", [name for name in NAMES if name.startswith("layer1")]),
        ("re:", [""]),
    ],
)
def test_names_and_globs_cover_what_is_below_and_a_regular_expression_only_the_very_module(text, expected) -> None:
    assert covered(text) == expected


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "'\\*\\*' selects every layer"),
        ("re:(", "not a regular expression"),
        ("type:", "names no class"),
        ("layer[34", "never closed"),
        ("conv[9-0]", "matches no character"),
        ("conv[.]", "matches no character"),
        *(
            (text, re.escape(f"write 're:{text}'"))
            for text in (r"layer1\..*", "^conv1", "fc$", "(a|b)", ".*conv", "x.+", r"l\d")
        ),
    ],
)
def test_a_selector_that_cannot_be_read_says_what_to_write(text, says) -> None:
    with pytest.raises(SelectorError, match=says):
        compiled(text)


class Linear(nn.Linear):
    """A class of the user's own that shares its name with torch's."""


LAYERS = [
    Candidate(("stem",), nn.BatchNorm2d, convertible=False),
    Candidate(("a", "b.a"), nn.Linear, convertible=True),
    Candidate(("lazy",), nn.LazyLinear, convertible=True),
    Candidate(("mine",), Linear, convertible=False, blocked="a subclass"),
    Candidate(("conv",), nn.Conv2d, convertible=True),
    Candidate(("out",), nn.Linear, convertible=True, blocked="read without a call"),
]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Linear", {1, 2, 5}),
        ("type:Linear", {1, 2, 5}),
        ("type:torch.nn.Linear", {1, 2, 5}),
        ("type:torch.nn.modules.linear.Linear", {1, 2, 5}),
        ("LazyLinear", {2}),
        (f"type:{Linear.__module__}.Linear", {3}),
        ("type:torch.nn.BatchNorm2d", {0}),
        ("type:BatchNorm2d", {0}),
        ("BatchNorm2d", set()),
        ("Conv2d", {4}),
        ("Conv1d", set()),
        ("type:no.such.Class", set()),
        ("type:torch.Linear", set()),
        ("first", {1}),
        ("last", {4}),
        ("b.a", {1}),
        ("b", {1}),
    ],
)
def test_classes_positions_and_aliases(text, expected) -> None:
    assert picked(compiled(text), LAYERS) == expected


def test_positions_pick_nothing_where_nothing_converts() -> None:
    assert picked(compiled("last"), LAYERS[:1]) == frozenset()


def reference(pattern: str, name: str) -> bool:
    """`*` and `?` stay inside a part, `**` crosses: by trying everything, character by character, dots in front."""
    return _walk("." + pattern, "." + name if name else "")


def _walk(pattern: str, name: str) -> bool:
    if not pattern:
        return not name
    for whole in (".**.", ".**"):
        if pattern.startswith(whole) and (whole[-1] == "." or len(pattern) == len(whole)):
            rest = pattern[3:]
            return name[:1] in ("", ".") and any(
                _walk(rest, name[cut:]) for cut in range(len(name) + 1) if name[cut : cut + 1] in ("", ".")
            )
    if pattern.startswith("**"):
        return any(_walk(pattern[2:], name[cut:]) for cut in range(len(name) + 1))
    if pattern[0] == "*":
        part = name.split(".")[0]
        return any(_walk(pattern[1:], name[cut:]) for cut in range(len(part) + 1))
    if pattern[0] == "?":
        return name[:1] not in ("", ".") and _walk(pattern[1:], name[1:])
    if pattern.startswith("[ab]"):
        return name[:1] in ("a", "b") and _walk(pattern[4:], name[1:])
    if pattern.startswith("[!a]"):
        return name[:1] not in ("", ".", "a") and _walk(pattern[4:], name[1:])
    return name[:1] == pattern[0] and _walk(pattern[1:], name[1:])


PARTS = st.text("ab1", min_size=1, max_size=3)
DOTTED = st.lists(PARTS, max_size=4).map(".".join)
TOKENS = st.sampled_from(["a", "b", "1", "*", "?", "[ab]", "[!a]", "**"])
GLOB_PARTS = st.one_of(st.just("**"), st.just("**"), st.lists(TOKENS, min_size=1, max_size=3).map("".join))
GLOBS = st.lists(GLOB_PARTS, min_size=1, max_size=4).map(".".join)
GLOBS = GLOBS.filter(lambda text: set("*?[") & set(text) and text.count("*") <= 5)


@settings(max_examples=1500, deadline=None, derandomize=True)
@given(GLOBS, DOTTED)
def test_a_glob_matches_as_the_reference_does(pattern, name) -> None:
    pattern = re.sub(r"\*{3,}", "**", pattern)
    assert compiled(pattern).names(name) == reference(pattern, name), (pattern, name)


@settings(max_examples=500, deadline=None, derandomize=True)
@given(GLOBS, DOTTED)
def test_a_glob_covers_a_name_when_it_matches_the_name_or_one_above(pattern, name) -> None:
    parts = name.split(".")
    above = [".".join(parts[:count]) for count in range(1, len(parts) + 1)]
    selector = compiled(pattern)
    assert selector.covers(name) == any(selector.names(name) for name in above)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.text(max_size=12), DOTTED)
def test_any_text_is_read_or_refused_politely(text, name) -> None:
    with contextlib.suppress(SelectorError):
        compiled(text).covers(name)
