"""Modules whose class is not the one that they were written with: changed in `__init__`, at a call, or generated."""

from __future__ import annotations

import types
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import bayesify
from bayesify.errors import StalePosteriorError
from tests.support import METHODS

X = torch.linspace(-1, 1, 18).view(3, 6)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.a(x)))  # type: ignore[no-any-return]


class InInit(Net):
    def __init__(self) -> None:
        super().__init__()
        self.__class__ = Became  # type: ignore[assignment]


class Became(InInit):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class AtFirstCall(Net):
    def forward(self, x: Tensor) -> Tensor:
        self.__class__ = Net  # type: ignore[assignment]
        return self(x)  # type: ignore[no-any-return]


class PatchesItself(Net):
    def __init__(self) -> None:
        super().__init__()
        self.forward = self.fast  # type: ignore[method-assign]

    def fast(self, x: Tensor) -> Tensor:
        return self.b(self.a(x))  # type: ignore[no-any-return]


class PatchesChild(Net):
    def __init__(self) -> None:
        super().__init__()
        self.a.forward = types.MethodType(lambda layer, x: F.linear(x, 2 * layer.weight), self.a)  # type: ignore


class WrapsAtFirstCall(Net):
    wrapped = False

    def forward(self, x: Tensor) -> Tensor:
        if not self.wrapped:
            self.a, self.wrapped = nn.Sequential(self.a, nn.ReLU()), True  # type: ignore[assignment]
        return super().forward(x)


class OfNoModule(Net):
    """A layer of a class that no module has a name for."""

    def __init__(self) -> None:
        super().__init__()
        self.a.__class__ = type("Linear", (nn.Linear,), {})


class Generated(nn.Module):
    """As e3nn writes its products: a graph for a product of the weights that it is given, another with its own."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.last = nn.Parameter(torch.randn(6, 6)), nn.Linear(6, 2)
        self.given, self.own = fx.GraphModule({}, _product(None)), fx.GraphModule(_holder(), _product("w"))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.own(self.given(x, self.weight)))  # type: ignore[no-any-return]


def _product(own: str | None) -> fx.Graph:
    graph = fx.Graph()
    x = graph.placeholder("x")
    w = graph.get_attr(own) if own else graph.placeholder("w")
    graph.output(graph.call_function(torch.einsum, ("bi,io->bo", x, w)))
    return graph


def _holder() -> nn.Module:
    holder = nn.Module()
    holder.w = nn.Parameter(torch.randn(6, 6))
    return holder


KINDS = [InInit, AtFirstCall, PatchesItself, PatchesChild, WrapsAtFirstCall, OfNoModule, Generated]


def named(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__} {type(module).__name__}"


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_conversion_comes_back_bit_for_bit(kind: Any, method: str) -> None:
    torch.manual_seed(0)
    plain = kind()
    classes = [named(module) for module in plain.modules()]
    converted = bayesify.convert(plain, method)
    reverted = bayesify.revert(converted)
    assert [named(module) for module in reverted.modules()] == classes
    assert reverted.state_dict().keys() == plain.state_dict().keys()
    before = {type(module) for module in plain.modules() if not isinstance(module, fx.GraphModule)}
    assert {type(module) for module in reverted.modules()} >= before  # torch makes a class for each copy of a graph
    assert not torch.equal(converted(X), converted(X))
    with bayesify.posterior_mean(converted):
        mean = converted(X)
    assert torch.equal(mean, plain(X))
    assert torch.equal(reverted(X), plain(X))
    assert torch.equal(bayesify.revert(converted)(X), plain(X))


@pytest.mark.parametrize("method", METHODS)
def test_in_place_the_very_classes_come_back(method: str) -> None:
    plain = Generated()
    expected, classes = plain(X), [type(module) for module in plain.modules()]
    converted: Any = bayesify.convert(plain, method, inplace=True)
    bayesify.revert(converted, inplace=True)
    assert [type(module) for module in plain.modules()] == classes
    assert torch.equal(plain(X), expected)


def test_one_draw_of_a_generated_graph_is_the_draw_that_is_held() -> None:
    model = bayesify.convert(Generated())
    bayesify.set_posterior_std(model, 0.1)
    with torch.no_grad(), bayesify.draw(model, seed=3):
        held = model(X)
    torch.testing.assert_close(bayesify.sample(model, seed=3)(X), held)


class Turns(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        self.__class__ = nn.Linear  # type: ignore[assignment]
        return self(x)  # type: ignore[no-any-return]


def test_a_layer_that_turns_into_another_is_blocked() -> None:
    row = bayesify.plan(nn.Sequential(Turns(6, 6), nn.Linear(6, 2))).rows[0]
    assert row.verb == "blocked"
    assert "forward changes its class: call the model once" in str(row.reason)


def test_a_layer_that_other_code_gave_a_plain_class_is_gone() -> None:
    model: Any = bayesify.convert(Net())
    model.a.__class__ = nn.Linear
    for use in (model.kl, lambda: bayesify.predict(model, X, samples=2)):
        with pytest.raises(StalePosteriorError, match="1 of 2 variational layers of Net are gone"):
            use()
