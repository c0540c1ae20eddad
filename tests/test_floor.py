"""The floor of `scripts/benchmark` does all that the estimators must: their law, their gradient, the KL."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from floor import floor_of, kl
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from bayesify.nn.settings import Method
from tests.support import METHODS, judge_moments

LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(4, 3), (2, 4)),
    "tokens": (lambda: nn.Linear(4, 3), (2, 2, 4)),
    "conv2d": (lambda: nn.Conv2d(2, 2, 2), (2, 2, 3, 3)),
}


def _floor(kind: str, method: Method) -> tuple[nn.Module, Any, Tensor]:
    make, shape = LAYERS[kind]
    torch.manual_seed(0)
    plain = make().double()
    layer: Any = floor_of(plain, method, std=0.3)
    layer.log_std.data += 0.5 * torch.randn_like(layer.log_std)
    return plain, layer, torch.randn(shape, dtype=torch.float64)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", LAYERS)
def test_gradients(kind: str, method: Method) -> None:
    _, layer, x = _floor(kind, method)

    def output(x: Tensor, *parameters: Tensor) -> Tensor:
        torch.manual_seed(3)
        return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (x,))

    names = [name for name, _ in layer.named_parameters()]
    assert torch.autograd.gradcheck(output, (x.requires_grad_(), *layer.parameters()), fast_mode=True)


@pytest.mark.parametrize("method", METHODS)
def test_moments(method: Method) -> None:
    """Of a Linear: each output has the variance Σ x²·std², and the examples of a batch are uncorrelated."""
    plain, layer, x = _floor("linear", method)
    with torch.no_grad():
        samples = torch.stack([layer(x) for _ in range(3000)])
        variance = x.square() @ layer.log_std.exp().square().T
    judge_moments(samples, plain(x).detach(), variance.flatten().diag())


def test_kl_and_its_gradient() -> None:
    """Of a large layer and of small ones, which go through it together."""
    model: Any = floor_of(nn.Sequential(nn.Linear(200, 100), nn.Linear(5, 4), nn.Conv2d(2, 3, 2)), "lrt", std=0.2)
    total = kl(model)
    exact = sum(kl_divergence(Normal(m.weight, m.log_std.exp()), Normal(0.0, 1.0)).sum() for m in model)
    torch.testing.assert_close(total, exact)
    parameters = [p for m in model for p in (m.weight, m.log_std)]
    found, expected = (torch.autograd.grad(value, parameters) for value in (total, exact))
    torch.testing.assert_close(found, expected)
