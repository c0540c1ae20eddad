"""Variance of the gradient against the batch size, 1 to 8192 (Wen et al. 2018, figure 1).

A perturbation shared by the batch levels off: examples that see the same weights go wrong together. Flipout falls as
1/N. The network is trained a little, then frozen; each gradient comes from a fresh batch and fresh noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from tests.support import noisy, variational

SIZES, DRAWS = (1, 8, 64, 512, 2048, 8192), 120
Gradient = Callable[[int], Tensor]


@pytest.fixture
def gradients() -> tuple[Gradient, Gradient]:
    """Flipout's gradient for a batch of the given size, and that of weights drawn once for the whole batch."""
    labels = torch.randint(10, (20_000,))
    images = 0.5 * torch.randn(10, 64)[labels] + torch.randn(20_000, 64)
    plain = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.Adam(plain.parameters(), lr=1e-3)
    for batch in torch.randint(20_000, (100, 256)):
        optimizer.zero_grad()
        F.cross_entropy(plain(images[batch]), labels[batch]).backward()
        optimizer.step()
    layers = [variational(plain[index], "flipout", noisy(bias="deterministic"), uneven=False) for index in (0, 2)]
    flipout = nn.Sequential(layers[0], nn.ReLU(), layers[1])
    means: dict[str, Any] = {name: parameter.detach() for name, parameter in plain.named_parameters()}

    def of_flipout(size: int) -> Tensor:
        batch = torch.randint(20_000, (size,))
        loss = F.cross_entropy(flipout(images[batch]), labels[batch])
        return torch.autograd.grad(loss, layers[0].weight)[0]

    def of_shared(size: int) -> Tensor:
        batch = torch.randint(20_000, (size,))
        drawn = dict(means)
        for name, layer in zip(("0.weight", "2.weight"), layers, strict=True):
            drawn[name] = layer.draw("weight").requires_grad_()
        loss = F.cross_entropy(functional_call(plain, drawn, images[batch]), labels[batch])
        return torch.autograd.grad(loss, drawn["0.weight"])[0]

    return of_flipout, of_shared


def _variance(gradient: Gradient, size: int, draws: int = DRAWS) -> float:
    return torch.stack([gradient(size) for _ in range(draws)]).var(0).mean().item()


def test_flipout_falls_as_one_over_the_batch_and_shared_noise_levels_off(gradients: tuple[Gradient, Gradient]) -> None:
    of_flipout, of_shared = gradients
    flipout = {size: _variance(of_flipout, size, 3000 if size == 1 else DRAWS) for size in SIZES}
    shared = {size: _variance(of_shared, size, 3000 if size == 1 else DRAWS) for size in SIZES}
    logs = torch.tensor([[math.log(size), math.log(flipout[size])] for size in SIZES])
    centred = logs - logs.mean(0)
    slope = ((centred[:, 0] * centred[:, 1]).sum() / centred[:, 0].square().sum()).item()
    assert slope == pytest.approx(-1, abs=0.05)
    assert shared[1] == pytest.approx(flipout[1], rel=0.1)
    assert flipout[2048] / flipout[8192] > 3
    assert shared[2048] / shared[8192] < 1.5
    assert shared[8192] > 5 * flipout[8192]
