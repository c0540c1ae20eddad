"""Example inputs: signs follow the model's examples wherever they are, and the plan says what runs told of layers."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bayesify
from bayesify.errors import NothingToConvertError
from tests.analysis.probe.test_followed_examples import _Folds
from tests.analysis.probe.told_models import notes_of
from tests.nets import SmallResNet
from tests.nn import hidden_reads


class _Odd(nn.Module):
    """What no signs can follow, and what all examples share; x (batch, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.mixed, self.shared, self.twice, self.unused = (nn.Linear(4, 4) for _ in range(4))
        self.rows, self.dead, self.still = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.register_buffer("places", torch.randn(3, 4))

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.mixed(x + x.mean(0))
        shared = self.shared(self.places).sum(0)
        y = self.twice(self.twice(x).unsqueeze(1)).squeeze(1)
        picked = self.rows(x[x[:, 0] > x[:, 0].median()])
        return mixed + shared + y + picked.sum() + self.dead(x).detach() + 0 * self.still(x)


def test_the_plan_says_what_cannot_be_followed() -> None:
    notes = notes_of(_Odd(), torch.randn(5, 4))
    called, approximate = notes["mixed"]
    assert called == "called once, (5, 4)"
    assert "signs along dimension 0 follow no example: its rows hold no single example each (inputs of" in approximate
    assert "(inputs of" not in notes_of(_Odd(), [torch.randn(5, 4), torch.randn(3, 4)])["mixed"][1]
    assert "one draw serves the whole batch" in notes["shared"][1]
    called, anew = notes["twice"]
    assert called == "called 2 times, (5, 4), (5, 1, 4)"
    assert "each of its calls draws anew" in anew
    assert "depends on the data" in notes["rows"][1] or "no single example" in notes["rows"][1]
    assert notes["unused"] == ("never called with these inputs",)
    still = [name for name, found in notes.items() if "noise in it does not move the output" in found]
    assert still == ["dead", "still"]


def test_a_shared_input_has_one_draw_for_all() -> None:
    torch.manual_seed(0)
    model: Any = bayesify.convert(_Odd(), example_inputs=torch.randn(5, 4))
    layer = model.shared
    layer.set_std("weight", 1.0)
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.zero_()
        y = torch.stack([layer(torch.ones(3, 4)) for _ in range(3)])
    assert torch.equal(y[:, 0], y[:, 1])
    assert not torch.equal(y[0], y[1])


def test_lrt_is_told_of_calls_alone() -> None:
    notes = notes_of(_Folds((0, 1, 2, 3, 4), 1, nn.Linear(5, 2)), torch.randn(2, 2, 3, 4, 5), "lrt")
    assert notes["layer"] == ("called once, (4, 3, 4, 5)",)


def test_a_product_is_seen_whatever_else_of_its_layer_the_function_takes() -> None:
    class BiasFirst(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias, self.weight = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.randn(4, 3))

        def forward(self, x: Tensor) -> Tensor:
            return torch.addmm(self.bias, x, self.weight)

    assert notes_of(BiasFirst(), torch.randn(2, 4))[""] == ("called once, (2, 4)",)


def test_a_usual_network_has_nothing_to_tell() -> None:
    notes = notes_of(SmallResNet(), torch.randn(4, 3, 8, 8))
    assert all(len(found) == 1 and found[0].startswith("called once") for found in notes.values() if found)


def test_a_computed_weight_is_seen_through() -> None:
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 4)), nn.ReLU(), nn.Linear(4, 2))
    notes = notes_of(model.eval(), torch.randn(5, 3))
    assert "called once, (5, 3)" in notes["0"]
    assert "noise in it does not move the output" not in notes["0"]


class _Half(nn.Module):
    """Two matrices, one of which is switched off."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.off = nn.Parameter(torch.randn(4, 4)), nn.Parameter(torch.randn(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.used + 0 * (x @ self.off)


def test_a_matrix_whose_noise_does_not_matter_is_named() -> None:
    notes = notes_of(nn.Sequential(_Half()), torch.randn(5, 4))
    assert notes["0"][:2] == ("called 2 times, (5, 4)", "noise in off does not move the output")


@pytest.mark.parametrize("kind", [hidden_reads.ByName, hidden_reads.Table], ids=lambda cls: cls.__name__)
def test_a_weight_that_code_multiplies_by_out_of_sight_stays(kind: Any) -> None:
    plain, x = kind(), torch.ones(3, 4)
    rows = {row.name: row for row in bayesify.plan(plain, example_inputs=x).rows}
    assert rows["b"].verb == "converts"
    assert rows["a"].verb == "blocked"
    assert re.match(r"code at hidden_reads.py:\d+ multiplies by its weight without calling it", str(rows["a"].reason))
    model = bayesify.convert(plain, example_inputs=x)
    assert not torch.equal(model(x), model(x))
    with pytest.raises(NothingToConvertError, match=r"no layer is left to convert: 'a': code at hidden_reads\.py"):
        bayesify.plan(hidden_reads.FunctionGetsLayer(), example_inputs=x)


def test_a_tied_head_that_is_kept_is_no_code_out_of_sight() -> None:
    plain = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    plain[1].weight = plain[0].weight
    rows = bayesify.plan(plain, {"method": "flipout", "ignore": ["1"]}, example_inputs=torch.ones(3, 4)).rows
    assert [row.verb for row in rows] == ["converts", "keeps"]
