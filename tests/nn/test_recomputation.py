"""Layers and products inside torch.utils.checkpoint: the backward pass computes them again with the same noise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

import bayesify
from bayesify.errors import BypassError
from bayesify.nn.settings import Method
from tests.support import METHODS

REENTRANT = pytest.mark.parametrize("reentrant", [True, False])


class Checkpointed(nn.Module):
    """Multiplies by weights inside a checkpointed region, as long as it is on."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.w, self.v, self.lin = nn.Parameter(torch.randn(4, 4)), nn.Parameter(torch.randn(4, 4)), nn.Linear(4, 4)
        self.on, self.settings = True, {"use_reentrant": reentrant}

    def region(self, function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        return checkpoint(function, *inputs, **self.settings) if self.on else function(*inputs)  # type: ignore[no-any-return]


class ByMethod(Checkpointed):
    def inner(self, x: Tensor) -> Tensor:
        return torch.tanh(x @ self.w)

    def forward(self, x: Tensor) -> Tensor:
        return self.region(self.inner, x)


class OfAChild(Checkpointed):
    def inner(self, x: Tensor) -> Tensor:
        return torch.tanh(F.linear(x, self.lin.weight, self.lin.bias))

    def forward(self, x: Tensor) -> Tensor:
        return self.region(self.inner, x)


class CallsAChild(Checkpointed):
    """A layer of torch's inside a region."""

    def forward(self, x: Tensor) -> Tensor:
        return self.region(self.lin, x)


class ByClosure(Checkpointed):
    """A view of the weight that is taken outside of the region."""

    def forward(self, x: Tensor) -> Tensor:
        view = self.w.t()
        return self.region(lambda h: torch.tanh(h @ view), x)


class AsArgument(Checkpointed):
    def forward(self, x: Tensor) -> Tensor:
        return self.region(lambda h, w: torch.tanh(h @ w), x, self.w.t() * 2.0)


class InTwoRegions(Checkpointed):
    """The same weights in two regions and outside of them."""

    def forward(self, x: Tensor) -> Tensor:
        def inner(h: Tensor) -> Tensor:
            return torch.tanh(h @ self.w) @ self.v.t()

        return self.region(inner, self.region(inner, x)) @ self.w


class Selective(Checkpointed):
    """Keeps what matrix products gave, and computes all else again."""

    def inner(self, x: Tensor) -> Tensor:
        return torch.tanh(self.lin(x) @ self.w)

    def forward(self, x: Tensor) -> Tensor:
        kept: Any = [torch.ops.aten.mm.default, torch.ops.aten.addmm.default]
        self.settings = {"use_reentrant": False, "context_fn": lambda: create_selective_checkpoint_contexts(kept)}
        return self.region(self.inner, x)


class Nested(Checkpointed):
    def forward(self, x: Tensor) -> Tensor:
        def inner(h: Tensor) -> Tensor:
            return torch.tanh(h @ self.w)

        return self.region(lambda h: self.region(inner, h) @ self.v, x)


def gradients(model: nn.Module) -> dict[str, Any]:
    model.zero_grad()
    torch.manual_seed(1)
    x = torch.ones(3, 4, requires_grad=True)
    model(x).square().sum().backward()
    return {"": x.grad, **{name: parameter.grad for name, parameter in model.named_parameters()}}


@REENTRANT
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "cls", [ByMethod, OfAChild, CallsAChild, ByClosure, AsArgument, InTwoRegions, Nested, Selective]
)
def test_gradients_are_those_without_checkpointing(cls: Any, method: Method, reentrant: bool) -> None:
    torch.manual_seed(0)
    model = bayesify.convert(nn.Sequential(cls(reentrant)), method)
    bayesify.set_posterior_std(model, 0.3)
    module: Any = model[0]
    module.on = False
    want = gradients(model)
    module.on = True
    got = gradients(model)
    assert sum(name.endswith("_rho") and gradient is not None for name, gradient in want.items()) > 0
    for name, gradient in want.items():
        assert gradient is None or torch.allclose(got[name], gradient), name


@REENTRANT
@pytest.mark.parametrize("method", METHODS)
def test_two_forwards_before_one_backward_each_keep_their_own_noise(method: Method, reentrant: bool) -> None:
    torch.manual_seed(0)
    model = bayesify.convert(nn.Sequential(ByMethod(reentrant)), method)
    bayesify.set_posterior_std(model, 0.3)
    module: Any = model[0]

    def both() -> list[Tensor]:
        model.zero_grad()
        torch.manual_seed(1)
        x = torch.ones(3, 4, requires_grad=True)
        (model(x) * model(2 * x)).sum().backward()
        return [parameter.grad.clone() for parameter in (module.w, module.w_rho)]

    module.on = False
    want = both()
    module.on = True
    assert all(map(torch.allclose, both(), want))


@REENTRANT
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("rerouted", [True, False])
def test_a_generator_that_is_not_restored_is_refused(method: Method, reentrant: bool, rerouted: bool) -> None:
    net = ByMethod(reentrant) if rerouted else CallsAChild(reentrant)
    model: Any = bayesify.convert(nn.Sequential(net), method)
    model[0].settings["preserve_rng_state"] = False
    loss = model(torch.ones(3, 4, requires_grad=True)).sum()
    with pytest.raises(BypassError, match="preserve_rng_state"):
        loss.backward()
    with bayesify.posterior_mean(model):
        model(torch.ones(3, 4, requires_grad=True)).sum().backward()  # without noise nothing differs


class Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return x @ weight.t()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        return gradients[0] @ weight, gradients[0].t() @ x


class OwnFunction(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        return Product.apply(x, self.weight)  # type: ignore[no-any-return,no-untyped-call]


class FusedAdapters(nn.Module):
    """As fused LoRA functions: one function takes the weights of several children."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 2, bias=False), nn.Linear(2, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        hidden = Product.apply(x, self.a.weight)  # type: ignore[no-untyped-call]
        return Product.apply(hidden, self.b.weight)  # type: ignore[no-any-return,no-untyped-call]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("cls", [OwnFunction, FusedAdapters])
def test_an_autograd_function_of_the_users_multiplies_by_a_draw(cls: Any, method: Method) -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(cls())
    assert "one draw" in "".join(note for row in bayesify.plan(plain, method).rows for note in row.notes)
    model = bayesify.convert(plain, method)
    bayesify.set_posterior_std(model, 0.3)
    x = torch.randn(5, 4)
    model(x).square().sum().backward()
    scales = {name: parameter.grad for name, parameter in model.named_parameters() if name.endswith("_rho")}
    assert scales
    assert all(gradient is not None and (gradient != 0).all() for gradient in scales.values())
    with bayesify.posterior_mean(model):
        assert torch.equal(model(x), plain(x))


def test_the_scale_of_a_weight_in_an_autograd_function_has_the_gradient_of_its_variance() -> None:
    model: Any = bayesify.convert(nn.Sequential(OwnFunction()))
    bayesify.set_posterior_std(model, 0.3)
    torch.manual_seed(0)
    for _ in range(4000):  # d/dstd of E[y²], of inputs of ones, is 2·std for each of 16 weights, over 4 outputs
        (model(torch.ones(1, 4)).square().sum() / 4000).backward()
    slope = torch.sigmoid(model[0].weight_rho)  # dstd/drho
    assert torch.allclose(model[0].weight_rho.grad / slope, torch.full((4, 4), 0.6), atol=0.6)
    assert abs((model[0].weight_rho.grad / slope).mean() - 0.6) < 0.2


class Hidden(nn.Module):
    """Hands its weight to a function in a way that no trace shows."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.late = nn.Parameter(torch.randn(4, 4)), False

    def forward(self, x: Tensor) -> Tensor:
        return Product.apply(x, self.weight) if self.late else x @ self.weight.t()  # type: ignore[no-any-return,no-untyped-call]


@pytest.mark.parametrize("method", METHODS)
def test_an_autograd_function_that_no_trace_showed_is_refused(method: Method) -> None:
    model: Any = bayesify.convert(nn.Sequential(Hidden()), method)
    model[0].late = True
    with pytest.raises(BypassError, match=r"autograd\.Function Product"):
        model(torch.randn(3, 4))
