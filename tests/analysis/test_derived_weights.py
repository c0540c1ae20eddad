"""Weights that a forward computes with before it multiplies: which of them one draw can stand for, and what it does."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch._dynamo  # a checkpoint would load it while torch.fx has replaced functions of math
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

import bayesify
from bayesify.analysis.weight_uses import uses
from bayesify.nn.settings import Method
from tests.support import METHODS, draws, judge_mean


class Net(nn.Module):
    """Matrices of its own and a child's, a mask, and whatever is done with them."""

    def __init__(self, forward: Callable[..., Any]) -> None:
        super().__init__()
        self.matrix, self.other = nn.Parameter(torch.randn(4, 3)), nn.Parameter(torch.randn(3, 5))
        self.kernel, self.child, self.act = nn.Parameter(torch.randn(4, 3, 2)), nn.Linear(3, 4), forward
        self.register_buffer("mask", torch.ones(4, 3).tril())

    def forward(self, x: Tensor) -> Any:
        return self.act(self, x)


def standardized(net: Net, x: Tensor) -> Tensor:
    rows = F.batch_norm(net.kernel.reshape(1, 4, -1), None, None, training=True, momentum=0.0)
    return F.conv1d(x.mT, rows.reshape_as(net.kernel)).mT


def modulated(net: Net, x: Tensor) -> Tensor:
    weight = net.kernel * x.mean(1)[:, None, :, None]
    weight = weight * torch.rsqrt(weight.square().sum([2, 3], keepdim=True) + 1e-8)
    return F.conv1d(x.mT.reshape(1, -1, x.shape[1]), weight.view(-1, 3, 2), groups=x.shape[0])


def masked_in_place(net: Net, x: Tensor) -> Tensor:
    net.matrix.data *= net.mask
    return F.linear(x, net.matrix)


def orthogonalized_in_place(net: Net, x: Tensor) -> Tensor:
    weight = net.matrix.data / net.matrix.data.norm()
    for _ in range(20):  # what is computed of a value on many ways is looked at once
        weight = 1.5 * weight - 0.5 * weight @ weight.T @ weight
    net.matrix.data.copy_(weight)
    return F.linear(x, net.matrix)


# (what is done with an x of (2, 6, 3), which Parameters are drawn)
DRAWN: dict[str, tuple[Callable[[Net, Any], Any], set[str]]] = {
    "function": (lambda m, x: F.linear(x, m.matrix.exp()), {"matrix"}),
    "normalized": (lambda m, x: F.linear(F.normalize(x), F.normalize(m.matrix)), {"matrix"}),
    "standardized": (standardized, {"kernel"}),
    "modulated": (modulated, {"kernel"}),
    "masked in place": (masked_in_place, {"matrix"}),
    "orthogonalized in place": (orthogonalized_in_place, {"matrix"}),
    "straight through": (lambda m, x: F.linear(x, (m.matrix.sign() - m.matrix).detach() + m.matrix), {"matrix"}),
    "a product of two": (lambda m, x: F.linear(x, m.matrix @ m.other @ m.other.T), {"matrix", "other"}),
    "beside a product": (lambda m, x: F.linear(x, m.matrix) + m.matrix.logsumexp(0).sum(), {"matrix"}),
    "gathered": (lambda m, x: torch.einsum("bnd,nmd->bnm", x, m.matrix[m.mask.long()[None, 0] + x.shape[0] - 2]),
                 {"matrix"}),
    "where data stand": (lambda m, x: F.linear(m.matrix, x.mean(0)), {"matrix"}),
    "a child's": (lambda m, x: F.linear(x, F.softplus(m.child.weight), m.child.bias), {"child.weight"}),
    "on one side of a branch": (lambda m, x: F.linear(x, m.matrix) if x.dim() else x + m.matrix, {"matrix"}),
}  # fmt: skip


@pytest.mark.parametrize("name", DRAWN)
def test_which_weights_are_drawn(name: str) -> None:
    act, weights = DRAWN[name]
    net = Net(act)
    found = uses(net)
    assert not found.failure
    assert found.drawn.keys() == {id(net.get_parameter(each)) for each in weights}


KEPT: dict[str, Callable[[Net, Any], Any]] = {
    "added to data": lambda m, x: x + m.matrix.exp(),
    "looked up and added": lambda m, x: x + m.matrix[x.argmax()],
    "scales data": lambda m, x: x * m.matrix.exp(),
    "data are written": lambda m, x: (m.matrix.data.copy_(x.sum()), F.linear(x, m.matrix.exp())),
    "in place": lambda m, x: (m.matrix.mul_(2), F.linear(x, m.matrix.exp())),
    "no gradient": lambda m, x: F.linear(x, m.matrix.detach().exp()),
    "a child's input": lambda m, x: m.child(m.matrix.exp()),
    "a sum with data": lambda m, x: F.linear(x, m.matrix.exp() + x.mean()),
}


@pytest.mark.parametrize("name", KEPT)
def test_which_are_not(name: str) -> None:
    net = Net(KEPT[name])
    found = uses(net)
    assert not found.drawn
    assert "it is used in `" in str(found.problem(net.matrix))


class Checkpointed(nn.Module):
    """What runs again in the backward pass would find the mean."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix, self.head = nn.Parameter(torch.randn(4, 3)), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        again = torch.utils.checkpoint.checkpoint
        y: Tensor = again(lambda each: F.linear(each, self.matrix.exp()), x, use_reentrant=False)
        return self.head(y)  # type: ignore[no-any-return]


def test_a_forward_that_runs_again_keeps_its_weight() -> None:
    assert not uses(Checkpointed()).drawn


@pytest.mark.parametrize("name", DRAWN)
@pytest.mark.parametrize("method", METHODS)
def test_the_forward_computes_with_one_draw(method: Method, name: str) -> None:
    """The very output of the plain module with the drawn weights in it, differentiable in mean and scale."""
    act, weights = DRAWN[name]
    plain, x = Net(act), torch.randn(2, 6, 3)
    before, expected = copy.deepcopy(plain.state_dict()), copy.deepcopy(plain)(x)
    model = bayesify.convert(plain, method)
    owners = {each: model.get_submodule(each.rpartition(".")[0]) for each in weights}
    torch.manual_seed(5)
    output = model(x)
    assert all(type(each) is nn.Parameter for each in model.parameters())
    torch.manual_seed(5)
    drawn = {}
    for path in sorted(weights, key=[key for key, _ in plain.named_parameters()].index):
        std = owners[path].std_of(path.rpartition(".")[2])
        drawn[path] = plain.get_parameter(path) + std * torch.randn_like(std)
    assert torch.equal(output, functional_call(copy.deepcopy(plain), drawn, (x,)))
    output.square().sum().backward()
    grads = [owners[path].scale_of(path.rpartition(".")[2]).grad for path in weights]
    assert all(each.abs().sum() > 0 for each in grads)
    with bayesify.posterior_mean(model):
        assert torch.equal(model(x), expected)
    assert all(torch.equal(each, before[key]) for key, each in plain.state_dict().items())
    assert all(each._reached for each in owners.values())


def test_the_plan_says_that_one_draw_serves_the_batch() -> None:
    made = bayesify.plan(Net(DRAWN["function"][0]), example_inputs=torch.randn(2, 6, 3))
    row = next(made.converting())
    assert any(each.startswith("one draw of matrix serves the whole batch") for each in row.notes)
    assert not any("never called" in each for each in row.notes)


class Scaled(nn.Module):
    """Equalized learning rate, and a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(3, 4))
        self.register_buffer("mask", torch.tensor([[1.0, 0.0, 1.0, 0.0]]))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.matrix * 0.5 * self.mask)


@pytest.mark.parametrize("method", METHODS)
def test_a_weight_times_numbers_keeps_its_estimator(method: Method) -> None:
    """Two equal examples have draws of their own; what the mask hides has no noise."""
    model = bayesify.convert(Scaled(), method)
    assert model._settings.drawn == ()
    x = torch.randn(1, 4).expand(2, 4)
    spread = draws(model, 4000, x) - x @ (model.matrix * 0.5 * model.mask).T.detach()
    variance = x.square() @ (model.std_of("matrix") * 0.5 * model.mask).square().T.detach()
    judge_mean("variance", spread.square() / variance, 1.0)
    judge_mean("two examples", (spread[:, 0] * spread[:, 1]) / variance[0], 0.0)
    hidden = torch.tensor([[0.0, 1.0, 0.0, 1.0]])
    assert torch.equal(model(hidden), torch.zeros(1, 3))


@pytest.mark.parametrize("method", METHODS)
def test_compiles_to_one_graph(method: Method) -> None:
    model, x, outputs = bayesify.convert(Net(DRAWN["a child's"][0]), method), torch.randn(2, 6, 3), []
    torch._dynamo.reset()
    for function in (model, torch.compile(model, fullgraph=True, backend="aot_eager")):
        torch.manual_seed(3)
        outputs.append(function(x))
    torch.testing.assert_close(*outputs)


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
