"""Folded names are products that give back the very names."""

import itertools
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bayesify.report.fold_names import fold, fold_names


def expanded(name: str) -> list[str]:
    """What a shell's brace expansion makes of a name."""
    parts = re.split(r"(\{.*?\})", name)
    return ["".join(each) for each in itertools.product(*(list(_alternatives(part)) for part in parts))]


def _alternatives(part: str):
    if not part.startswith("{"):
        return [part]
    if ".." not in part:
        return part[1:-1].split(",")
    first, last, *step = map(int, part[1:-1].split(".."))
    return map(str, range(first, last + 1, *step))


def sized(names: dict[str, int], **kwargs) -> list[str]:
    return [row.name for row in fold(names, str, size=names.__getitem__, **kwargs)]


@pytest.mark.parametrize(
    ("names", "folded"),
    [
        ("layer1.{0..1}.conv{1..2}", ["layer1.{0,1}.conv{1,2}"]),
        ("encoder.layer.{0..11}.attention.self.{query,key,value}", None),
        ("0 2 4", ["{0,2,4}"]),
        ("features.{0..8..2}", ["features.{0..8..2}"]),
        ("a.0 a.1 a.2 a.5", ["a.{0,1,2,5}"]),
        ("conv1 fc", ["conv1", "fc"]),
        ("query key", ["query", "key"]),
        ("fc1 b fc2", ["fc{1,2}", "b"]),
        ("layer.0 layer.1.a layer.1.b", ["layer.0", "layer.1.{a,b}"]),
        ("b.01 b.02 b.03", ["b.{01,02,03}"]),
        ("a.0.w a.1.w a.0.v", ["a.0.{w,v}", "a.1.w"]),
        ("", [""]),
    ],
)
def test_folds(names, folded):
    given_names = [each for name in names.split(" ") for each in expanded(name)]
    assert fold_names(given_names) == (folded or names.split(" "))


def test_stages_and_small_networks_keep_a_line_each():
    names = {"layer1.0.conv1": 9, "layer1.1.conv1": 9, "layer1.0.conv2": 4, "layer1.1.conv2": 4, "layer2.0.conv1": 36}
    assert sized(names) == ["layer1.{0,1}.conv{1,2}", "layer2.0.conv1"]
    assert sized({"0": 70, "2": 40, "4": 40, "6": 10}) == ["0", "{2,4}", "6"]
    assert sized({"a.0.up": 4, "a.0.down": 4, "a.0.norm": 1}) == ["a.0.{up,down}", "a.0.norm"]


def test_too_many_lines_fold_sizes_that_differ():
    names = {f"features.{number}": number for number in range(50)}
    assert len(sized(names, most=50)) == 50
    assert sized(names, most=49) == ["features.{0..49}"]


def test_keys_are_held_apart_and_sizes_summed():
    names = {"a.0": 1, "a.1": 1, "a.2": 1}
    found = fold(names, str, key=lambda name: name == "a.1", size=names.__getitem__)
    assert [(each.name, each.items, each.size) for each in found] == [
        ("a.{0,2}", ("a.0", "a.2"), 2),
        ("a.1", ("a.1",), 1),
    ]


PARTS = st.sampled_from(["layer1", "layer2", "layer10", "0", "1", "2", "conv1", "conv2", "fc", "q", "k", "_3x3", "a1b"])


@settings(max_examples=300, deadline=None)
@given(st.lists(st.lists(PARTS, min_size=1, max_size=4).map(".".join), unique=True), st.integers(1, 9))
def test_expanding_gives_back_each_name_once(names, most):
    folds = fold(names, str, key=lambda name: name[-1] == "q", size=len, most=most)
    assert [sorted(fold.items) for fold in folds] == [sorted(expanded(fold.name)) for fold in folds]
    assert sorted(name for fold in folds for name in fold.items) == sorted(names)
    firsts = [names.index(fold.items[0]) for fold in folds]
    assert firsts == sorted(firsts)
    assert all(len({name[-1] == "q" for name in fold.items}) == 1 for fold in folds)
