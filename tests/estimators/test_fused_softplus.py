"""softplus for the compiler: the same numbers, and nothing of the weight's size kept of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bayesify
from bayesify.distributions.normal_kl import NormalTerm, normal_kls
from bayesify.estimators.fused_softplus import fused_softplus, fused_square, softplus_and_slope
from tests.support import as_if_compiling

SPANS = [(-87.0, -60.0), (-20.0, -4.0), (-4.0, 4.0), (4.0, 30.0), (30.0, 1e4)]


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("span", SPANS)
def test_softplus_and_its_slope(span: tuple[float, float], again: bool) -> None:
    rho = torch.linspace(*span, 9999)
    wide = rho.double()
    std, slope = softplus_and_slope(rho, again=again)
    exact = wide.clamp_min(0) + torch.log1p(torch.exp(-wide.abs()))
    torch.testing.assert_close(std.double(), exact, rtol=5e-7, atol=0)
    torch.testing.assert_close(slope.double(), torch.sigmoid(wide), rtol=3e-7, atol=0)


@pytest.mark.parametrize("function", [fused_softplus, fused_square])
def test_gradients(function: Any) -> None:
    rho = torch.linspace(-30, 30, 999, requires_grad=True)
    with as_if_compiling():
        found = torch.autograd.grad(function(rho).sum(), rho)[0]
    wide = rho.detach().double().requires_grad_()
    expected = torch.autograd.grad(function(wide).sum(), wide)[0]
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=0)


def test_the_kl_stays_finite_below_the_smallest_number() -> None:
    rho = torch.full((7,), -200.0, requires_grad=True)
    with as_if_compiling():
        total = normal_kls([NormalTerm(torch.zeros(7), rho, 0.0, 1.0)])
        (gradient,) = torch.autograd.grad(total, rho)
    assert total.isfinite()
    torch.testing.assert_close(gradient, torch.full((7,), -1.0))


@pytest.mark.parametrize("mean", ["zero", "pretrained"])
@pytest.mark.parametrize("method", ["flipout", "lrt"])
def test_a_compiled_step_keeps_no_more_than_flipouts_draw(method: str, mean: str) -> None:
    plain = nn.Linear(96, 64)
    prior = {"mean": mean, "std": 1.0 if mean == "zero" else {"init_std": 3.0}}
    model: Any = bayesify.convert(plain, {"method": method, "prior": prior})
    x = torch.randn(3, 96)
    loss = torch.compile(lambda: model(x).square().mean() + model.kl(), fullgraph=True)
    known = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers(), x)}
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        total = loss()
    sizes = {own.untyped_storage().data_ptr(): own.numel() for own in kept}
    large = [size for address, size in sizes.items() if address not in known and size >= plain.weight.numel()]
    assert len(large) == (method == "flipout")
    total.backward()
