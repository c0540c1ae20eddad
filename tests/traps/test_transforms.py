"""Traps: what runs a model in another way than eagerly: checkpoints, compilers, tracers, vmap, autocast."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import bayesify
from tests.nets import SmallResNet, image
from tests.traps.common import METHODS, differs


@METHODS
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_21_checkpointing_replays_the_noise(method: str, use_reentrant: bool) -> None:
    model = bayesify.convert(SmallResNet(), method)
    x = image().requires_grad_()

    def gradients(wrapped: bool) -> list[Tensor]:
        model.zero_grad()
        model.kl.reset()  # type: ignore[union-attr]
        torch.manual_seed(3)
        output = checkpoint(model, x, use_reentrant=use_reentrant) if wrapped else model(x)
        (output.square().sum() + model.kl(reached=True)).backward()  # type: ignore[operator]
        return [parameter.grad.clone() for parameter in model.parameters()]  # type: ignore[union-attr]

    for ours, theirs in zip(gradients(True), gradients(False), strict=True):
        torch.testing.assert_close(ours, theirs)


@METHODS
def test_22_compile(method: str) -> None:
    model, x = bayesify.convert(SmallResNet().eval(), method), image()
    step: Any = torch.compile(
        lambda x: model(x).square().mean() + model.kl(reached=True) / 1e6, fullgraph=True, backend="aot_eager"
    )  # type: ignore[operator]
    first, second = step(x), step(x)
    first.backward()
    assert not torch.equal(first, second)
    assert all(parameter.grad is not None for parameter in model.parameters())
    with bayesify.posterior_mean(model):
        assert torch.equal(step(x), step(x))
    assert not torch.equal(step(x), step(x))


class Leaves(torch.fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, bayesify.nn.Variational) or super().is_leaf_module(m, module_qualified_name)


@METHODS
def test_23_tracing_and_export(method: str) -> None:
    model, x = bayesify.convert(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), method), torch.ones(3, 2)
    graph = Leaves().trace(model)
    assert [node.target for node in graph.nodes if node.op == "call_module"] == ["0", "1"]
    assert differs(torch.fx.GraphModule(model, graph), x)
    assert differs(torch.export.export(model, (x,)).module(), x)


@METHODS
def test_24_vmap(method: str) -> None:
    model, x = bayesify.convert(SmallResNet(), method).eval(), image()
    with torch.no_grad():
        different = torch.func.vmap(lambda _: model(x), randomness="different")(torch.empty(3))
        same = torch.func.vmap(lambda _: model(x), randomness="same")(torch.empty(3))
    assert not torch.equal(different[0], different[1])
    assert torch.equal(same[0], same[1])


@METHODS
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_25_autocast(method: str, dtype: torch.dtype) -> None:
    model = bayesify.convert(nn.Sequential(nn.Linear(64, 8)), method)
    bayesify.set_posterior_std(model, 1e-4)
    x = torch.full((512, 64), 1e-2).requires_grad_()
    with torch.autocast("cpu", dtype):
        output = model(x)
    assert output.dtype is dtype
    output.float().sum().backward()
    for parameter in (x, *model.parameters()):
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()
    assert x.grad.abs().sum() > 0  # type: ignore[union-attr]
    assert model[0].weight_rho.grad.abs().sum() > 0  # type: ignore[union-attr]
