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
from tests.analysis.standardized_nets import DRAWN, Net
from tests.support import METHODS, draws, judge_mean


@pytest.mark.parametrize("name", DRAWN)
def test_which_weights_are_drawn(name: str) -> None:
    act, weights = DRAWN[name]
    net = Net(act)
    found = uses(net)
    assert not found.failure
    assert found.drawn.keys() == {id(net.get_parameter(weight)) for weight in weights}


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
    owners = {weight: model.get_submodule(weight.rpartition(".")[0]) for weight in weights}
    torch.manual_seed(5)
    output = model(x)
    assert all(type(parameter) is nn.Parameter for parameter in model.parameters())
    torch.manual_seed(5)
    drawn = {}
    for path in sorted(weights, key=[key for key, _ in plain.named_parameters()].index):
        std = owners[path].std_of(path.rpartition(".")[2])
        drawn[path] = plain.get_parameter(path) + std * torch.randn_like(std)
    assert torch.equal(output, functional_call(copy.deepcopy(plain), drawn, (x,)))
    output.square().sum().backward()
    grads = [owners[path].scale_of(path.rpartition(".")[2]).grad for path in weights]
    assert all(gradient.abs().sum() > 0 for gradient in grads)
    with bayesify.posterior_mean(model):
        assert torch.equal(model(x), expected)
    assert all(torch.equal(value, before[key]) for key, value in plain.state_dict().items())
    assert all(owner._reached for owner in owners.values())


def test_the_plan_says_that_one_draw_serves_the_batch() -> None:
    made = bayesify.plan(Net(DRAWN["function"][0]), example_inputs=torch.randn(2, 6, 3))
    row = next(made.converting())
    assert any(note.startswith("one draw of matrix serves the whole batch") for note in row.notes)
    assert not any("never called" in note for note in row.notes)


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
