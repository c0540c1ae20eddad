"""Code around a layer that would silence or freeze its noise: the layer is blocked, or the plan notes it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bayesify
from tests.support import METHODS

from . import kept_weights


class ByType(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Conv1d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        for layer in (self.first, self.second):
            x = x + layer(x.T).T if type(layer) is nn.Linear else layer(x)
        return x


class ByName(ByType):
    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x) if self.first.__class__.__name__ in ("Linear", "Bilinear") else x)


class ByInstance(ByType):
    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x) if isinstance(self.first, nn.Linear) else x)


class Merges(nn.Linear):
    def __init__(self) -> None:
        super().__init__(4, 4)
        self.a, self.b = nn.Parameter(torch.randn(2, 4)), nn.Parameter(torch.randn(4, 2))

    def train(self, mode: bool = True) -> Any:
        self.weight.data += self.delta() if not mode else 0
        return super().train(mode)

    def delta(self) -> Tensor:
        return (self.b @ self.a).data

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(x, self.weight)
        return y + (x @ self.a.t()) @ self.b.t() if self.training else y


class Caches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w, self.cache = nn.Parameter(torch.randn(4, 4)), None

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return x @ (self.w / self.w.norm())
        if self.cache is None:
            self.cache = self.w / self.w.norm()
        return x @ self.cache


class Penalized(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Any:
        return self.layer(x), sum(parameter.square().sum() for parameter in self.parameters())


class AsksForDevice(Penalized):
    def forward(self, x: Tensor) -> Any:
        return self.layer(x.to(next(self.parameters()).device))


class PenalizesChild(Penalized):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4)))  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Any:
        weights = [value for name, value in self.layer.named_parameters() if "weight" in name]
        return self.layer(x), sum(weight.square().sum() for weight in weights)


class PenalizesModules(PenalizesChild):
    def forward(self, x: Tensor) -> Any:
        owned = [value for each in self.modules() for value in each.parameters(recurse=False)]
        return self.layer(x), sum(value.square().sum() for value in owned)


class PenalizesChildren(PenalizesChild):
    def forward(self, x: Tensor) -> Any:
        return self.layer(x), sum(value.square().sum() for each in self.children() for value in each.parameters())


class Momentum(nn.Module):
    """As MoCo: a second encoder, frozen, follows the first one's Parameters in every forward."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key = nn.Sequential(nn.Linear(4, 4)), nn.Sequential(nn.Linear(4, 4))
        self.key.requires_grad_(False)

    @torch.no_grad()
    def follow(self) -> None:
        for own, other in zip(self.key.parameters(), self.query.parameters(), strict=True):
            own.mul_(0.5).add_(other, alpha=0.5)

    def forward(self, x: Tensor) -> Any:
        self.follow()
        return self.query(x), self.key(x)


class AsksState(Penalized):
    def forward(self, x: Tensor) -> Any:
        return self.layer(x), sum(value.square().sum() for value in self.state_dict().values())


class ByTable(ByType):
    def __init__(self) -> None:
        super().__init__()
        self.table = {nn.Linear: self.as_rows}

    def as_rows(self, layer: nn.Module, x: Tensor) -> Any:
        return layer(x.T).T

    def forward(self, x: Tensor) -> Tensor:
        for layer in (self.first, self.second):
            x = self.table.get(type(layer), lambda layer, x: layer(x))(layer, x)  # type: ignore[arg-type]
        return x


class ByHelper(ByType):
    def forward(self, x: Tensor) -> Tensor:
        return self.second(transposed(self.first, x))


class ByGetName(ByType):
    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x.T).T if self.first._get_name() == "Linear" else x)


class ByText(ByType):
    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x.T).T if "linear.Linear'" in str(type(self.first)) else x)


class SaysType(ByType):
    """Its message mentions a class, and its code decides nothing by it."""

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 2:
            raise ValueError(f"a Linear takes no {type(x)}")
        return self.second(self.first(x.T).T)


def transposed(layer: nn.Module, x: Tensor) -> Any:
    return layer(x.T).T if type(layer) is nn.Linear else x


def rows(model: nn.Module, method: str) -> dict[str, Any]:
    """The plan's rows, beside a Linear that converts in any case."""
    return {row.name: row for row in bayesify.plan(nn.Sequential(model, nn.Linear(3, 3)), method).rows}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("model", [ByType, ByName, ByTable, ByHelper, ByGetName, ByText], ids=lambda cls: cls.__name__)
def test_a_layer_that_is_known_by_its_exact_class_is_blocked(model: Any, method: str) -> None:
    plan = rows(model(), method)
    assert plan["0.first"].verb == "blocked"
    assert "isinstance" in plan["0.first"].reason
    assert plan["0.second"].verb == "converts"


@pytest.mark.parametrize("model", [ByInstance, SaysType])
def test_isinstance_is_well(model: Any) -> None:
    assert rows(model(), "flipout")["0.first"].verb == "converts"


@pytest.mark.parametrize("method", METHODS)
def test_a_weight_that_train_merges_is_blocked(method: str) -> None:
    row = rows(Merges(), method)["0"]
    assert row.verb == "blocked"
    assert "Merges.train() computes with its weight" in row.reason


@pytest.mark.parametrize("method", METHODS)
def test_a_computed_weight_that_is_kept_is_blocked(method: str) -> None:
    row = rows(Caches(), method)["0"]
    assert row.verb == "blocked"
    assert "self.cache" in row.reason


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("model", kept_weights.KINDS, ids=lambda cls: cls.__name__)
def test_a_computed_weight_is_found_wherever_it_is_kept(model: Any, training: bool) -> None:
    row = rows(model().train(training), "flipout")["0.conv" if model is kept_weights.OfChild else "0"]
    assert row.verb == "blocked"
    assert "a draw would be kept there" in row.reason
    assert not kept_weights.TABLE


def test_what_is_kept_of_data_blocks_nothing() -> None:
    assert rows(kept_weights.KeepsOutput(), "flipout")["0"].verb == "converts"


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "model", [Penalized, PenalizesChild, PenalizesModules, PenalizesChildren, Momentum], ids=lambda cls: cls.__name__
)
def test_a_forward_that_goes_over_parameters_finds_those_of_the_plain_model(model: Any, method: str) -> None:
    plain, x = model(), torch.randn(3, 4)
    converted = bayesify.convert(plain, method)
    owned, others = len([*converted.parameters()]), [*converted.named_parameters()]
    for _ in range(2):
        out, beside = converted(x)
        with bayesify.posterior_mean(converted):
            expected, its = plain(x)
            quiet, penalty = converted(x)
        assert not torch.equal(out, expected)
        assert torch.equal(quiet, expected)
        if model is not Momentum:
            assert torch.equal(penalty, its)
            assert torch.equal(beside, its)
    with torch.no_grad():
        converted(x)
    assert [*converted.named_parameters()] == others
    assert owned > len([*plain.parameters()])
    reverted = bayesify.revert(converted)
    assert [type(each) for each in reverted.modules()] == [type(each) for each in plain.modules()]


def test_a_frozen_twin_follows_means_only() -> None:
    plain = Momentum()
    converted = bayesify.convert(plain, "flipout")
    converted(torch.randn(3, 4))
    plain(torch.randn(3, 4))
    assert all(torch.equal(a, b) for a, b in zip(converted.key.parameters(), plain.key.parameters(), strict=True))


def test_such_a_forward_compiles_to_one_graph() -> None:
    converted, x = bayesify.convert(PenalizesChild(), "flipout"), torch.randn(3, 4)
    torch._dynamo.reset()
    compiled = torch.compile(converted, backend="eager", fullgraph=True)
    assert not torch.equal(compiled(x)[0], compiled(x)[0])
    assert torch.equal(compiled(x)[1], converted(x)[1])


def test_it_is_in_the_plan() -> None:
    row = rows(Penalized(), "flipout")["0"]
    assert (row.verb, "goes over its Parameters: scales are left out" in row.reason) == ("adjusted", True)
    assert "0" not in rows(AsksForDevice(), "flipout")


def test_a_state_dict_in_a_forward_is_noted() -> None:
    assert any("asks for a state_dict" in note for note in rows(AsksState(), "flipout")["0.layer"].notes)


class ComputedInEval(nn.Module):
    """Calls its layer while it trains, and multiplies by a weight that it computes from the layer's else."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) if self.training else F.linear(x, self.layer.weight / self.layer.weight.norm())


@pytest.mark.parametrize("training", [True, False])
def test_both_modes_of_a_forward_are_seen(training: bool) -> None:
    row = rows(ComputedInEval().train(training), "flipout")["0.layer"]
    assert any("takes its weight beside, without noise" in note for note in row.notes)
