"""A plan reads well: folded, aligned, no wider than asked, without escape codes; and says everything."""

import io
import json
import re
from dataclasses import replace

import pytest
import torch
from rich.console import Console
from torch import nn

import bayesify
from bayesify.report.lines import short
from bayesify.report.tables import show

from .test_fold_names import expanded

MIXED = {
    "method": "lrt",
    "ignore": ["conv1", "**.downsample"],
    "rules": [
        {"name": "head", "targets": ["fc"], "prior": {"std": 1.0}, "bias": "variational"},
        {"name": "late stages of it all", "targets": ["layer[34]"], "method": "flipout", "signs": "position"},
        {"targets": ["**.conv2"], "posterior": {"parameterization": "multiplicative", "init_std": 0.01}},
    ],
}


def resnet50(vision):
    with torch.device("meta"):
        return vision.models.resnet50()


def encoder():
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 6)


class Scales(nn.Module):
    """Uses its matrix in a way that has no estimator."""

    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width, width))

    def forward(self, x):
        return x * self.weight


def shared():
    first = nn.Linear(4, 4)
    model = nn.Sequential(first, nn.ReLU(), first, nn.Linear(4, 4), nn.Embedding(7, 4), nn.GRU(4, 4))
    model[3].weight = first.weight
    return model


def lazy():
    return nn.Sequential(nn.LazyConv2d(3, 3), nn.Flatten(), nn.LazyLinear(10))


def long_names():
    model = nn.Module()
    for number in range(2):
        name = f"a_name_without_any_place_to_break_it_that_goes_on_and_on_and_on_{number}"
        model.add_module(name, nn.Linear(3, number + 3))
    return model


MODELS = [encoder, shared, lazy, long_names, lambda: nn.ConvTranspose3d(3, 4, 2)]


def check(text: str, width: int) -> None:
    assert max(map(len, text.splitlines())) <= width
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", text)
    assert all(line == line.rstrip() for line in text.splitlines())


def test_resnet50_fits_two_screens(vision):
    plan = bayesify.plan(resnet50(vision), "flipout")
    text, first = plan.as_text(width=80), next(plan.converting()).settings
    check(text, 80)
    lines = text.splitlines()
    assert len(lines) < 30
    assert lines[0] == "ResNet, policy flipout"
    assert "layer3.{0..5}.conv{1..3} ×18  Conv2d → FlipoutConv2d  defaults  6.55 M → 13.1 M" in lines
    assert "fc                            Linear → FlipoutLinear  defaults  2.05 M → 4.10 M" in lines
    assert f"defaults  {first.posterior}  {first.prior}" in lines
    assert "keeps  53 BatchNorm2d (53.1 K parameters): no weight matrix" in lines
    assert lines[-1] == "54 layers convert, 53 kept; parameters 25,557,032 → 51,059,944"


def test_a_wide_terminal_has_every_column(vision):
    lines = bayesify.plan(resnet50(vision), MIXED).as_text(width=250).splitlines()
    head = next(line for line in lines if line.startswith("layer "))
    assert re.split(r"  +", head) == ["layer", "type → new type", "rule", "parameters", "posterior", "prior", "why"]
    row = next(line for line in lines if line.startswith("layer4"))
    for cell in ("Conv2d → FlipoutConv2d", "late stages of it all", "12,845,056 → 25,690,112", "signs per position"):
        assert cell in row
    assert re.search(r"^fc .*additive, std 0\.0\d+·\|w\|, biases too +N\(w₀, 1\)$", "\n".join(lines), re.M)
    assert re.search(r"^layer1.*multiplicative, std 0\.01 +N\(w₀, 0\.03\) +approximate: LRT", "\n".join(lines), re.M)


@pytest.mark.parametrize("width", [60, 80, 100, 120, 180])
@pytest.mark.parametrize("full", [False, True])
def test_no_line_is_too_long_and_nothing_is_lost(vision, width, full):
    plan = bayesify.plan(resnet50(vision), MIXED)
    text = plan.as_text(full=full, width=width)
    check(text, width)
    squeezed = re.sub(r"\s", "", text)
    for word in ("FlipoutConv2d", "LRTLinear", "latestagesofitall", "biasestoo", "signsperposition", "N(w₀,1)"):
        assert word in squeezed or width < 100  # there, cells of several lines stand side by side
    assert "note 1" in text or width == 180
    assert re.search(r"ignored by\s+'\*\*\.downsample'", text)
    if full and width > 60:
        assert all(re.search(rf"(^|\s){re.escape(row.name)}(\s|,|$)", text) for row in plan.rows)


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("method", ["flipout", "lrt"])
@pytest.mark.parametrize("build", MODELS)
def test_any_model_fits(build, method, width):
    check(bayesify.plan(build(), method).as_text(width=width), width)


def test_each_name_stands_in_the_report(vision):
    plan = bayesify.plan(resnet50(vision), MIXED)
    names = [row.name for row in plan.rows if row.type != "BatchNorm2d"]
    found = re.findall(r"(?:^|(?<=[\s]))[a-z][a-z0-9]*[\w.{},]*(?=\s|,|$)", plan.as_text(width=250), re.M)
    assert set(names) <= {name for each in found for name in expanded(each.rstrip(","))}


def test_what_is_in_the_way_is_said():
    text = " ".join(bayesify.plan(encoder(), "lrt").as_text(width=80).split())
    assert "adjusted 6 TransformerEncoderLayer: its fused inference path reads" in text
    assert "×12" in text
    assert "approximate where its input is a sequence: LRT draws per position (24 layers)" in text
    assert text.index("adjusted") < text.index("keeps 12 LayerNorm")
    text = " ".join(bayesify.plan(nn.Sequential(Scales(3), encoder()), "lrt").as_text(width=80).split())
    assert "blocked 1 Scales (9 parameters): weight: it is used in `mul` at" in text
    assert text.index("adjusted") < text.index("blocked") < text.index("keeps 12 LayerNorm")


def test_shared_and_lazy_layers():
    text = bayesify.plan(shared(), "lrt").as_text(width=80)
    assert "0 (= 2)" in text
    assert "weight is tied to 0.weight (1 layer)" in text
    assert "approximate: LRT ignores that its calls share one weight (1 layer)" in text
    assert "GRU → LRTGRU" in text
    text = bayesify.plan(lazy(), "flipout").as_text(width=80)
    assert text.count("when it sees data") == 2
    assert "those that lazy layers will have" in text


def test_the_model_itself():
    text = bayesify.plan(nn.Linear(3, 2), "flipout").as_text(width=80)
    assert "(the model itself)  Linear → FlipoutLinear" in text
    assert text.endswith("1 layer converts; parameters 8 → 14")


def test_a_prior_elsewhere_needs_no_legend():
    plan = bayesify.plan(nn.Linear(3, 2), {"prior": {"mean": 0.0, "std": 1.0}})
    assert "w₀" not in plan.as_text(width=80)


def test_names_break_between_their_parts():
    parts = {f"a_rather_long_name_{each}": nn.ModuleDict({"block_of_layers": nn.Linear(2, 3)}) for each in "ab"}
    model = nn.ModuleDict({"the_outermost_module_of_them": nn.ModuleDict(parts)})
    lines = bayesify.plan(model, "flipout").as_text(width=80).splitlines()
    assert [line.split()[0] for line in lines if line.startswith("the_")] == ["the_outermost_module_of_them."] * 2
    assert "  a_rather_long_name_b.block_of_layers" in lines


def test_repr_html_and_json():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Embedding(3, 3))
    plan = bayesify.plan(model, {"rules": [{"name": "<i>", "targets": ["0"]}]})
    assert repr(plan) == plan.as_text()
    html = plan._repr_html_()
    assert "<i>" not in html
    assert "&lt;i&gt;" in html
    assert "Linear → FlipoutLinear" in html
    assert "no rule claims it" in html
    assert json.loads(json.dumps(plan.to_dict())) == plan.to_dict()


def test_colours_are_for_terminals_only():
    plan = bayesify.plan(shared(), "lrt")
    for terminal in (True, False):
        file = io.StringIO()
        console = Console(file=file, force_terminal=terminal, width=80, color_system="standard")
        show(plan.title, plan.rows, plan.totals, console)
        plain = re.sub(r"\x1b\[[\d;]*m", "", file.getvalue())
        assert ("\x1b" in file.getvalue()) is terminal
        assert [line.rstrip() for line in plain.rstrip().splitlines()] == plan.as_text(width=80).splitlines()


def test_markup_in_a_name_is_a_name():
    plan = bayesify.plan(nn.ModuleDict({"[red]": nn.Linear(2, 2), ":smile:": nn.Embedding(2, 2)}), "flipout")
    file = io.StringIO()
    show(plan.title, plan.rows, plan.totals, Console(file=file, force_terminal=True, width=80))
    for text in (plan.as_text(width=80), file.getvalue()):
        assert "[red]" in text
        assert ":smile:" in text


def test_reasons_that_differ_in_numbers_are_one():
    plan = bayesify.plan(nn.Sequential(nn.Linear(2, 2), Scales(6), Scales(6)), "flipout")
    rows = [replace(row, reason=row.reason and f"read at a.py:{at}, 2") for at, row in enumerate(plan.rows)]
    text = replace(plan, rows=tuple(rows)).as_text(width=80)
    assert "blocked  2 Scales (72 parameters): read at a.py:*, 2\n         {1,2}\n" in text


def test_what_is_in_the_way_comes_first():
    model = nn.Sequential(nn.LayerNorm(2), nn.Linear(2, 2), nn.Linear(2, 3), Scales(6))
    text = bayesify.plan(model, {"ignore": ["1"]}).as_text(width=80)
    assert re.findall(r"^(?:blocked|keeps).*", text, re.M) == [
        "blocked  1 Scales (36 parameters): weight: it is used in `mul` at",
        "keeps    1 Linear (6 parameters): ignored by '1'",
        "keeps    1 LayerNorm (4 parameters): no weight matrix",
    ]


def test_layers_of_unlike_settings_are_not_folded():
    stds = {"a.0": 1.0, "a.1": 2.0}
    rules = [{"name": "one name", "targets": [name], "prior": {"std": std}} for name, std in stds.items()]
    model = nn.ModuleDict({"a": nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))})
    text = bayesify.plan(model, {"rules": rules}).as_text(width=80)
    assert "a.0 " in text
    assert "a.1 " in text
    assert text.count("one name") == 4


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (9_999, "9,999"), (10_000, "10.0 K"), (36_864, "36.9 K"), (99_960, "100 K"), (999_499, "999 K"),
     (999_500, "1.00 M"), (9_994_999, "9.99 M"), (9_995_000, "10.0 M"), (25_557_032, "25.6 M"),
     (7_240_000_000, "7.24 B"), (5 * 10**15, "5,000 T")],
)  # fmt: skip
def test_counts(number, text):
    assert short(number) == text
