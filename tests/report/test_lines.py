"""What a report says of odd models: lettered blocks, names with escape codes, given inputs; in 40 columns too."""

import io
import itertools
import re
import string

import pytest
import torch
from rich.console import Console
from torch import nn

import bayesify
from bayesify.report.fold_names import fold
from bayesify.report.tables import show

HOSTILE = "a\x1b[31m\r\nblocked  b\u202e"


def lettered(blocks: int) -> nn.Module:
    letters = ("".join(pair) for pair in itertools.product(string.ascii_lowercase, repeat=2))
    with torch.device("meta"):
        return nn.ModuleDict(
            {f"block_{name}": nn.ModuleDict({"up": nn.Linear(4, 8), "down": nn.Linear(8, 4)})
             for name in itertools.islice(letters, blocks)}
        )  # fmt: skip


def test_lettered_blocks_fold() -> None:
    text = bayesify.plan(lettered(400), "flipout").as_text(width=80)
    assert "\nblock_{aa,ab,…,pj}.up ×400  " in text
    assert len(text.splitlines()) < 15
    few = bayesify.plan(lettered(3), "flipout").as_text(width=80)
    assert "block_ac.down" in few


def test_words_fold_only_where_there_are_too_many_lines() -> None:
    names = {f"{letter}.fc": 1 for letter in "abcdefghij"} | {"k.conv": 2}
    assert len(fold(names, str, size=names.__getitem__, most=11)) == 11
    folded = fold(names, str, size=names.__getitem__, most=10)
    assert [group.name for group in folded] == ["{a,b,…,j}.fc", "k.conv"]
    assert [group.items for group in folded] == [tuple(names)[:10], ("k.conv",)]


@pytest.mark.parametrize("method", ["flipout", "lrt"])
def test_forty_columns_are_enough(method: str) -> None:
    rules = [{"name": "a rule with quite a long name", "targets": ["0"], "bias": "variational"}, {"targets": ["**"]}]
    model = nn.Sequential(nn.ConvTranspose2d(300, 400, 3), nn.TransformerEncoderLayer(16, 2, 32), nn.LazyLinear(3))
    for full in (False, True):
        text = bayesify.plan(model, {"method": method, "rules": rules}).as_text(width=40, full=full)
        assert max(map(len, text.splitlines())) <= 40
        words = " ".join(text.split())
        for said in ("when it sees data", "a rule with quite a long name", "biases too", "1.08 M"):
            assert said in words
        assert re.search(r"→ (Flipout|LRT)ConvTranspose2d", words)


def test_what_inputs_told_is_no_warning() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Flatten(0, 1), nn.Linear(8, 3))
    plan = bayesify.plan(model, "flipout", example_inputs=torch.randn(2, 5, 8))
    assert any("called once" in note for note in plan.rows[0].notes)
    for width in (40, 80, 120):
        text = plan.as_text(width=width)
        assert "note" not in text
        assert "examples along dimension 0, 5 rows each" in " ".join(text.split())
    wide = plan.as_text(width=250)
    assert re.search(r"^0 .*called once, \(2, 5, 8\)$", wide, re.M)
    assert "called once, (10, 8); examples along dimension 0, 5 rows each" in wide
    sequence_first = bayesify.plan(nn.Sequential(nn.GRU(4, 4)), "lrt", example_inputs=torch.randn(3, 2, 4))
    assert "note 1" in sequence_first.as_text(width=80)


def hostile() -> bayesify.Plan:
    model = nn.Module()
    model._modules[HOSTILE] = nn.Linear(2, 2)
    model._modules["k" + HOSTILE] = type("Odd\x1b[2J", (nn.LayerNorm,), {})(2)
    return bayesify.plan(model, {"rules": [{"name": "r\x07", "targets": ["type:Linear"]}]})


def test_escape_codes_in_names_reach_no_terminal_pipe_or_notebook() -> None:
    plan, file = hostile(), io.StringIO()
    show(plan.title, plan.rows, plan.totals, Console(file=file, force_terminal=True, color_system=None, width=100))
    for text in (plan.as_text(width=100), plan.as_text(width=40), plan.as_text(full=True), file.getvalue()):
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f\u202e]", text)
        assert not re.search(r"^blocked", text, re.M)
    html = plan._repr_html_()
    assert html.isprintable()
    assert r"a\x1b[31m\r\nblocked  b\u202e" in html
    assert r"r\x07" in html


def test_the_notebook_table_scrolls_and_has_its_legend() -> None:
    policy = {"method": "lrt", "prior": {"mean": "pretrained"}}
    html = bayesify.plan(nn.Sequential(nn.Linear(3, 3), nn.Embedding(3, 3)), policy)._repr_html_()
    assert html.count("white-space:nowrap") == 6
    assert "overflow-x:auto" in html
    assert "w₀: the weights as they are at conversion" in html
    assert "w₀" not in bayesify.plan(nn.Linear(3, 2), {"prior": {"mean": 0.0, "std": 1.0}})._repr_html_()


def test_the_report_says_which_prior_the_depth_chose() -> None:
    """The same words in a terminal and in a notebook, and none where a policy chose the prior."""
    words = "the default prior where up to 6 layers convert"
    shallow, deep = nn.Sequential(*[nn.Linear(2, 2)] * 6), nn.Sequential(*(nn.Linear(2, 2) for _ in range(7)))
    for model, policy, expected in ((shallow, {}, True), (deep, {}, False), (shallow, {"prior": {"std": 1.0}}, False)):
        plan = bayesify.plan(model, policy)
        assert (words in plan.as_text(width=140)) == expected
        assert (words in plan._repr_html_()) == expected
