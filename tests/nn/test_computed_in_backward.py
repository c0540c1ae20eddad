"""autograd.Functions of the user's that compute layers again in their backward: they would draw other noise."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bayesify
from bayesify.errors import BypassError
from bayesify.nn.settings import Method
from tests.support import METHODS


class Again(torch.autograd.Function):
    """Keeps no activation: its backward computes the block a second time."""

    @staticmethod
    def forward(ctx: Any, block: Any, x: Tensor, *parameters: Tensor) -> Any:
        ctx.block, ctx.parameters = block, parameters
        ctx.save_for_backward(x)
        with torch.no_grad():
            return block.inner(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x = ctx.saved_tensors[0].detach().requires_grad_()
        with torch.enable_grad():
            y = ctx.block.inner(x)
        return None, *torch.autograd.grad(y, (x, *ctx.parameters), grad, allow_unused=True)


class Reversible(torch.autograd.Function):
    """Computes its inputs from its outputs, and the outputs from those again."""

    @staticmethod
    def forward(ctx: Any, block: Any, x: Tensor, *parameters: Tensor) -> Any:
        ctx.block, ctx.parameters = block, parameters
        with torch.no_grad():
            y = block.inner(x)
        ctx.save_for_backward(y.detach())
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        a, b = ctx.saved_tensors[0].chunk(2, -1)
        with torch.no_grad():
            b = b - ctx.block.g(a)
            x = torch.cat([a - ctx.block.f(b), b], -1).requires_grad_()
        with torch.enable_grad():
            y = ctx.block.inner(x)
        return None, *torch.autograd.grad(y, (x, *ctx.parameters), grad)


class Layers(nn.Module):
    function: Any = Again

    def __init__(self) -> None:
        super().__init__()
        self.f, self.g, self.w = nn.Linear(2, 2), nn.Linear(2, 2), nn.Parameter(torch.randn(4, 4))

    def inner(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, -1)
        a = a + self.f(b)
        return torch.cat([a, b + self.g(a)], -1)

    def forward(self, x: Tensor) -> Any:
        return self.function.apply(self, x, *self.f.parameters(), *self.g.parameters())


class Pairs(Layers):
    function = Reversible


class OwnProduct(Layers):
    def inner(self, x: Tensor) -> Tensor:
        return torch.tanh(F.linear(x, self.w))

    def forward(self, x: Tensor) -> Any:
        return self.function.apply(self, x, self.w)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("block", [Layers, Pairs, OwnProduct])
def test_it_is_refused_in_the_backward_pass(block: Any, method: Method) -> None:
    model = bayesify.convert(nn.Sequential(block(), nn.Linear(4, 2)), method)
    loss = model(torch.randn(3, 4, requires_grad=True)).sum()
    with pytest.raises(BypassError, match=f"backward of the autograd.Function {block.function.__name__}"):
        loss.backward()


@pytest.mark.parametrize("block", [Layers, Pairs, OwnProduct])
def test_at_the_mean_it_is_right(block: Any) -> None:
    plain = block()
    model, x = bayesify.convert(plain), torch.randn(3, 4, requires_grad=True)
    plain(x).sum().backward()
    with bayesify.posterior_mean(model):
        model(x).sum().backward()
    for name, parameter in plain.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(model.get_parameter(name).grad, parameter.grad)
