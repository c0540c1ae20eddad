"""A layer whose weight a parent reads is converted only where it is certain that its noise is seen."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import bayesify


class EitherWay(nn.Module):
    """Its code calls `a`, but what runs reads the weight of it; of `b` it does both."""

    by_call = False

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        scale = self.b.weight.square().sum()
        h = self.a(x) if self.by_call else x * self.a.weight.sum()
        return self.head(self.b(h) / scale)


class Untraceable(EitherWay):
    """Nothing is known of what it runs."""

    def forward(self, x: Tensor) -> Tensor:
        assert type(x) is Tensor
        return super().forward(x)


@pytest.mark.parametrize(("cls", "blocked"), [(EitherWay, {"1.a"}), (Untraceable, {"1.a", "1.b"})])
@pytest.mark.parametrize("method", ["flipout", "lrt"])
def test_code_that_could_call_what_it_reads(cls: type[EitherWay], blocked: set[str], method: str) -> None:
    model = nn.Sequential(nn.Linear(4, 4), cls()).eval()
    made = bayesify.plan(model, method)
    assert {row.name for row in made.rows if row.verb == "blocked"} == blocked
    assert all("reads its weight without calling it" in str(row.reason) for row in made.rows if row.name in blocked)
    converted = bayesify.convert(model, method)
    converted(torch.randn(3, 4)).square().sum().backward()
    for name, layer in bayesify.variational_layers(converted):
        assert layer.weight_rho.grad is not None, name  # type: ignore[union-attr]


def test_a_layer_that_is_called_beside_converts() -> None:
    model = EitherWay()
    model.by_call = True
    assert {row.name for row in bayesify.plan(model).converting()} == {"a", "b", "head"}
