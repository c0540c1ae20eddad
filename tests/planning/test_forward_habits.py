"""Code around a layer that would silence or freeze its noise: the layer is blocked, or the plan notes it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bayesify
from tests.support import METHODS


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


class Given(nn.Module):
    def forward(self, h: Tensor, weight: Tensor) -> Tensor:
        return F.linear(h, weight)


class Hands(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enc, self.dec = nn.Linear(4, 6), Given()

    def forward(self, x: Tensor) -> Tensor:
        return self.dec(torch.tanh(self.enc(x)), self.enc.weight.t())


def rows(model: nn.Module, method: str) -> dict[str, Any]:
    """The plan's rows, beside a Linear that converts in any case."""
    return {row.name: row for row in bayesify.plan(nn.Sequential(model, nn.Linear(3, 3)), method).rows}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("model", [ByType, ByName], ids=lambda cls: cls.__name__)
def test_a_layer_that_is_known_by_its_exact_class_is_blocked(model: Any, method: str) -> None:
    plan = rows(model(), method)
    assert plan["0.first"].verb == "blocked"
    assert "isinstance" in plan["0.first"].reason
    assert plan["0.second"].verb == "converts"


def test_isinstance_is_well() -> None:
    assert rows(ByInstance(), "flipout")["0.first"].verb == "converts"


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


@pytest.mark.parametrize("method", METHODS)
def test_a_penalty_over_all_parameters_is_noted(method: str) -> None:
    row = rows(Penalized(), method)["0.layer"]
    assert any("goes over its Parameters" in note for note in row.notes)
    row = rows(AsksForDevice(), method)["0.layer"]
    assert not any("goes over its Parameters" in note for note in row.notes)


@pytest.mark.parametrize("method", METHODS)
def test_a_weight_that_is_handed_to_a_child_is_noted(method: str) -> None:
    row = rows(Hands(), method)["0.enc"]
    assert row.verb == "converts"
    assert any("takes its weight beside, without noise" in note and "test_forward_habits" in note for note in row.notes)
