"""A weight that the forward computes with is drawn once for each call, whoever calls and reads it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch._dynamo  # a checkpoint would load it while torch.fx has replaced functions of math
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

import bayesify
from bayesify.nn.settings import Method
from tests.analysis.standardized_nets import DRAWN, Net
from tests.support import METHODS


class Reader(nn.Module):
    """Computes with a child's weight."""

    def __init__(self) -> None:
        super().__init__()
        self.child = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, F.softplus(self.child.weight))


class ReaderOfAReader(nn.Module):
    """And one that does so around it."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Reader()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) + F.linear(x, self.net.child.weight.exp())  # type: ignore[no-any-return]


def test_a_reader_around_a_reader_does_not_draw_again() -> None:
    plain, x = ReaderOfAReader().double(), torch.randn(2, 3).double()
    made = bayesify.plan(plain)
    assert {row.name for row in made.rows if row.reads} == {"", "net"}
    model = bayesify.convert(plain)
    torch.manual_seed(2)
    output = model(x)
    torch.manual_seed(2)
    std = model.net.child.weight_std
    drawn = {"net.child.weight": model.net.child.weight + std * torch.randn_like(std)}
    assert torch.equal(output, functional_call(plain, drawn, (x,)))


def test_an_error_in_the_forward_leaves_the_mean_in_its_place() -> None:
    def fails(net: Net, x: Tensor) -> Tensor:
        y = F.linear(x, net.matrix.exp())
        if y.isnan().any():
            raise ValueError("nan")
        return y

    model: Any = bayesify.convert(Net(fails))
    with pytest.raises(ValueError, match="nan"):
        model(torch.full((1, 3), torch.nan))
    assert type(model.matrix) is nn.Parameter
    assert not torch.equal(model(torch.ones(1, 3)), model(torch.ones(1, 3)))


def test_reverting_leaves_nothing_of_a_draw() -> None:
    plain = Net(DRAWN["function"][0])
    model: Any = bayesify.convert(plain)
    model(torch.randn(2, 6, 3))
    assert vars(bayesify.revert(model)).keys() == vars(plain).keys()


class Table(nn.Module):
    """As timm's relative positions: attention may ask for them by a method, past its forward."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(4, 5))
        self.register_buffer("lookup", torch.eye(5))

    def bias(self) -> Tensor:
        return self.table @ self.lookup

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bias()


class AsksATable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.head, self.by_method = Table(), nn.Linear(5, 2), True

    def forward(self, x: Tensor) -> Any:
        by_method = bool(x.sum() > 1e9) or self.by_method  # which has no census
        return self.head(self.table.bias() * x if by_method else self.table(x))


@pytest.mark.parametrize("by_method", [True, False])
@pytest.mark.parametrize("method", METHODS)
def test_a_product_in_a_method_that_a_parent_calls(method: Method, by_method: bool) -> None:
    plain = AsksATable()
    plain.by_method = by_method
    model: Any = bayesify.convert(plain, method)
    model(torch.randn(4, 5)).square().sum().backward()
    assert type(model.table).__name__.endswith("Table")
    assert model.table.scale_of("table").grad.abs().sum() > 0


class HalfFrozen(nn.Module):
    """As ProtoPNet, whose kernel of ones is a frozen Parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix, self.drawn = nn.Parameter(torch.randn(4, 3)), nn.Parameter(torch.randn(4, 3))
        self.ones = nn.Parameter(torch.ones(4, 3), requires_grad=False)
        self.fixed = nn.Parameter(torch.randn(4, 3), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(x, self.matrix) + F.linear(x.square(), self.ones)
        return y + F.linear(x, self.drawn.exp()) + F.linear(x, self.fixed.exp())


@pytest.mark.parametrize("method", METHODS)
def test_frozen_weights_beside_others(method: Method) -> None:
    model: Any = bayesify.convert(HalfFrozen(), method)
    assert model.means() == ["matrix", "drawn"]
    assert model._settings.drawn == ("drawn",)
    row = next(bayesify.plan(HalfFrozen(), method).converting())
    assert {f"{name} keeps no posterior: frozen (requires_grad=False)" for name in ("ones", "fixed")} <= {*row.notes}
    model(torch.randn(2, 3)).sum().backward()
    assert all(model.scale_of(name).grad.abs().sum() > 0 for name in model.means())
    model = bayesify.convert(HalfFrozen(), {"method": method, "frozen": "convert"})
    assert model.means() == [*HalfFrozen().state_dict()]
