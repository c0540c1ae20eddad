"""The plan: one row per module that bears a weight, right to the last parameter, and nothing is touched for it."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bayesify
from bayesify.distributions.scale import Scale
from bayesify.errors import NothingToConvertError, PolicyError
from bayesify.planning.plan import Plan
from bayesify.planning.planner import plan
from tests.nets import SmallResNet, Tangled, snapshot
from tests.planning.rows import rows_of

KEYS = {
    "name", "aliases", "verb", "type", "becomes", "rule", "reason",
    "parameters_before", "parameters_after", "posterior", "prior", "notes",
}  # fmt: skip
EVERYTHING = {"method": "flipout", "bias": "variational", "frozen": "convert"}


class Everything(nn.Module):
    """A model in which each of the four verbs occurs."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), 2)
        self.tangled = Tangled()
        self.own = nn.Parameter(torch.zeros(2, 3))
        self.lazy = nn.LazyConv1d(2, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.encoder(self.tangled.emb(tokens)) @ self.own.detach().T + self.own.exp().sum()


class ScaledEncoderLayer(nn.TransformerEncoderLayer):
    """A module that is switched and bears a weight of its own."""

    def __init__(self) -> None:
        super().__init__(4, 2, 8, batch_first=True)
        self.scale = nn.Parameter(torch.ones(4))


@pytest.mark.parametrize("make", [Everything, SmallResNet, Tangled, ScaledEncoderLayer, lambda: nn.Linear(2, 3)])
def test_every_weight_bearing_module_has_exactly_one_row_in_the_model_s_order(make: Any) -> None:
    model = make()
    rows = plan(model, EVERYTHING).rows
    names = [row.name for row in rows]
    bearing = {name for name, module in model.named_modules() if any(True for _ in module.parameters(recurse=False))}
    assert bearing <= set(names)
    assert Counter(names).most_common(1)[0][1] == 1
    assert names == [name for name, _ in model.named_modules() if name in names]
    assert all(row.verb in ("converts", "keeps", "blocked", "adjusted") for row in rows)
    assert {row.name for row in rows if row.verb != "adjusted"} <= bearing


def test_the_four_verbs_and_why() -> None:
    rows = rows_of(Everything())
    assert {row.verb for row in rows.values()} == {"converts", "keeps", "blocked", "adjusted"}
    for row in rows.values():
        assert (row.becomes is not None) == (row.verb == "converts") == (row.settings is not None)
        assert (row.reason is None) == (row.verb == "converts"), row
    assert (rows["encoder"].verb, rows["encoder.layers.1"].verb) == ("adjusted", "adjusted")
    assert (rows["encoder.layers.0.linear1"].type, rows["encoder.layers.0.linear1"].becomes) == (
        "Linear", "FlipoutLinear",
    )  # fmt: skip
    assert (rows["lazy"].becomes, rows["lazy"].parameters_after) == ("LazyFlipoutConv1d", 0)
    assert rows[""].reason is not None
    assert "own: it is used in `" in rows[""].reason
    assert rows["tangled.norm"].reason == "nn.LayerNorm has no weight matrix"
    assert rows["tangled.emb"].reason == "a table of rows converts only where a rule names it or its class"
    assert rows["tangled.frozen"].reason == "frozen (requires_grad=False)"
    assert rows_of(Tangled(), EVERYTHING)["frozen"].verb == "converts"


def test_a_module_that_is_switched_and_bears_a_weight_has_one_row_with_both() -> None:
    row = rows_of(nn.Sequential(ScaledEncoderLayer()))["0"]
    assert (row.verb, row.parameters_before, row.parameters_after) == ("adjusted", 4, 4)
    assert any("no weight matrix" in note for note in row.notes)


@pytest.mark.parametrize(
    "policy", ["flipout", "lrt", EVERYTHING, {"posterior": {"parameterization": "multiplicative"}}]
)
@pytest.mark.parametrize("make", [SmallResNet, Tangled, ScaledEncoderLayer])
def test_the_numbers_of_parameters_are_those_of_the_converted_model(make: Any, policy: Any) -> None:
    model = make()
    made = plan(model, policy)
    before = sum(parameter.numel() for parameter in model.parameters())
    after = sum(parameter.numel() for parameter in bayesify.convert(model, policy).parameters())
    assert (made.totals["parameters_before"], made.totals["parameters_after"]) == (before, after)
    assert sum(row.parameters_before for row in made.rows) == before
    assert sum(row.parameters_after for row in made.rows) == after
    assert {verb: made.totals[verb] for verb in ("converts", "keeps", "blocked", "adjusted")} == {
        verb: sum(row.verb == verb for row in made.rows) for verb in ("converts", "keeps", "blocked", "adjusted")
    }


def test_aliases_and_ties_are_shown_and_counted_once() -> None:
    rows = rows_of(Tangled())
    assert rows["a"].aliases == ("again",)
    assert "again" not in rows
    assert (rows["a"].parameters_before, rows["a"].parameters_after) == (20, 36)
    assert (rows["twin"].parameters_before, rows["twin"].parameters_after) == (4, 4)
    assert (rows["head"].parameters_before, rows["head"].parameters_after) == (0, 28)
    assert rows["twin"].notes[0] == "weight is tied to a.weight"
    assert rows["head"].notes[0] == "weight is tied to emb.weight"


def test_one_tied_weight_cannot_have_two_posteriors() -> None:
    rules = [{"targets": ["a"]}, {"targets": ["twin"], "prior": {"mean": "zero"}}]
    with pytest.raises(PolicyError, match=r"'a' \(rule 1\) and 'twin' \(rule 2\) share one weight"):
        plan(Tangled(), {"method": "flipout", "rules": rules})
    assert plan(Tangled(), {"method": "flipout", "rules": [{"targets": ["a"]}, {"targets": ["twin"], "method": "lrt"}]})


@pytest.mark.parametrize("policy", ["flipout", "lrt", EVERYTHING])
def test_the_dictionary_has_the_one_stable_shape(policy: Any) -> None:
    given = plan(Everything(), policy).to_dict()
    assert json.loads(json.dumps(given, allow_nan=False)) == given
    assert given.keys() == {"model", "policy", "rows", "totals"}
    assert given["model"] == "Everything"
    assert all(row.keys() == KEYS for row in given["rows"])
    assert given["totals"].keys() >= {
        "converts",
        "keeps",
        "blocked",
        "adjusted",
        "parameters_before",
        "parameters_after",
    }
    row = next(row for row in given["rows"] if row["verb"] == "converts")
    assert (row["posterior"]["parameterization"], row["prior"]["family"]) == ("additive", "normal")
    kept = next(row for row in given["rows"] if row["verb"] == "keeps")
    assert (kept["posterior"], kept["prior"], kept["becomes"]) == (None, None, None)


@pytest.mark.parametrize("make", [Everything, SmallResNet, Tangled])
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_a_dry_run_touches_nothing(make: Any, mode: str) -> None:
    model = make()
    getattr(model, mode)()
    model.register_forward_hook(lambda *_: pytest.fail("a hook ran"))
    next(model.parameters()).grad = torch.zeros_like(next(model.parameters()))
    policy = {"method": "flipout", "rules": [{"targets": ["Linear"], "prior": {"std": 1.0}}]}
    before, given = snapshot(model), repr(policy)
    plan(model, policy)
    plan(model, "lrt").to_dict()
    assert snapshot(model) == before
    assert repr(policy) == given


def test_the_snapshot_sees_what_it_should() -> None:
    """The guard's own guard."""

    def changed(change: Any) -> bool:
        model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
        before = snapshot(model)
        change(model)
        return bool(snapshot(model) != before)

    assert not changed(lambda model: model.state_dict())
    assert changed(lambda model: model[0].weight.data.add_(1))
    assert changed(lambda model: model.eval())
    assert changed(lambda model: model[1].running_mean.add_(1))
    assert changed(lambda model: model[0].register_forward_hook(print))
    assert changed(lambda model: setattr(model[0], "weight", nn.Parameter(model[0].weight.detach().clone())))
    assert changed(lambda model: torch.rand(1))
    assert changed(lambda model: setattr(model, "kl", None))


POLICIES: list[Any] = [
    "flipout", "lrt", EVERYTHING, "moped", "scratch", "sparse",
    {"method": "keep", "rules": [{"targets": ["Linear"], "method": "lrt"}]},
    {
        "method": "flipout", "unmatched": "allow",
        "rules": [{"targets": ["last"]}, {"targets": ["first"], "method": "lrt"}],
    },
]  # fmt: skip


@pytest.mark.parametrize("policy", POLICIES, ids=str)
@pytest.mark.parametrize("make", [SmallResNet, Tangled, ScaledEncoderLayer])
def test_what_the_plan_says_is_what_conversion_does(make: Any, policy: Any) -> None:
    model = make()
    rows = rows_of(model, policy)
    converted = bayesify.convert(model, policy)
    for name, module in converted.named_modules():
        row = rows.get(name)
        if row is not None and row.verb == "converts":
            assert type(module).__name__ == row.becomes
            assert module._settings == row.settings
            assert module.method == row.method
        else:
            assert type(module) is type(model.get_submodule(name))
    assert {name for name, _ in bayesify.variational_layers(converted)} == {
        name for name, row in rows.items() if row.verb == "converts"
    }


def test_the_root_may_be_the_layer() -> None:
    made = plan(nn.Linear(3, 2), "lrt")
    (row,) = made.rows
    assert (row.name, row.verb, row.becomes, row.parameters_after) == ("", "converts", "LRTLinear", 14)
    assert row.settings is not None
    assert (row.settings.posterior.init_std, made.model) == (Scale("relative", 0.2, 0.1), "Linear")


@pytest.mark.parametrize("depth", [1, 4, 9])
def test_auto_shares_one_budget_over_the_layers_that_convert(depth: int) -> None:
    model = nn.Sequential(
        *(nn.Linear(2, 2) for _ in range(depth)), nn.Linear(2, 2).requires_grad_(False), nn.LayerNorm(2)
    )
    for row in plan(model).converting():
        assert row.settings is not None
        assert row.settings.posterior.init_std is not None
        assert row.settings.posterior.init_std.value == pytest.approx({1: 0.2, 4: 0.1, 9: 0.4 / 9}[depth])
        assert str(row.settings.prior) == ("N(w₀, 0.1333·|w|)" if depth == 9 else "N(0, 5/√fan_in)")


@pytest.mark.parametrize(
    ("model", "policy", "words"),
    [
        (nn.ReLU(), "flipout", "no layer that can become variational"),
        (nn.Sequential(type("OwnLSTM", (nn.LSTM,), {})(2, 2)), "flipout", "subclass of nn.LSTM"),
        (nn.Linear(2, 2).requires_grad_(False), "lrt", "frozen: convert"),
        (nn.Linear(2, 2), {"method": "keep"}, "converts nothing"),
    ],
)
def test_nothing_left_to_convert(model: nn.Module, policy: Any, words: str) -> None:
    with pytest.raises(NothingToConvertError, match=words):
        plan(model, policy)
    with pytest.raises(NothingToConvertError, match=words):
        bayesify.convert(model, policy, inplace=True)


def test_meta_and_lazy_models_plan_without_numbers_and_repeat_the_same() -> None:
    with torch.device("meta"):
        model = SmallResNet()
    made: Plan = plan(model)
    assert made.to_dict() == plan(SmallResNet()).to_dict()
    lazy = nn.Sequential(nn.LazyLinear(2), nn.LazyBatchNorm1d())
    assert plan(lazy).totals["parameters_after"] == 0
