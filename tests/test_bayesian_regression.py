"""Training reaches the exact posterior of Bayesian linear regression, by either method.

For y = Xw + N(0, s²) and w ~ N(0, p²) the posterior is N(m, P⁻¹) with P = XᵀX/s² + I/p², m = P⁻¹Xᵀy/s². The best
factorized approximation, which is what the ELBO is maximal at, has the mean m and the variances 1/diag(P).
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.func import vmap

from bayesify.distributions.posterior import Parameterization, Scale
from bayesify.distributions.prior import Normal
from bayesify.nn.settings import Method
from tests.support import METHODS, PARAMETERIZATIONS, noisy, variational

POINTS, FEATURES, NOISE, PRIOR = 40, 4, 0.5, 0.8
STEPS, DRAWS = 1000, 60


def _data() -> tuple[Tensor, Tensor]:
    mixing = torch.eye(FEATURES) + 0.4 * torch.randn(FEATURES, FEATURES)  # correlated features
    x = torch.randn(POINTS, FEATURES) @ mixing
    return x, x @ torch.tensor([[1.0], [-0.7], [0.5], [1.5]]) + NOISE * torch.randn(POINTS, 1)


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
@pytest.mark.parametrize("method", METHODS)
def test_training_reaches_the_exact_posterior(method: Method, parameterization: Parameterization) -> None:
    x, y = _data()
    precision = x.T @ x / NOISE**2 + torch.eye(FEATURES) / PRIOR**2
    mean, std = torch.linalg.solve(precision, x.T @ y / NOISE**2).flatten(), precision.diagonal().rsqrt()
    settings = noisy(parameterization, bias="deterministic", prior=Normal(0.0, Scale("constant", PRIOR)))
    plain = nn.Linear(FEATURES, 1, bias=False)
    plain.weight.data = 0.8 * torch.linalg.lstsq(x, y).solution.T  # multiplicative means cannot cross zero
    layer = variational(plain, method, settings)
    layer.set_std("weight", 0.1)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for _ in range(STEPS):
        outputs = vmap(lambda _: layer(x), randomness="different")(torch.empty(DRAWS))
        nll = (outputs - y).square().sum() / (2 * NOISE**2 * DRAWS)
        optimizer.zero_grad()
        (nll + layer.kl_divergence()).backward()
        optimizer.step()
        scheduler.step()
    assert ((layer.weight.detach().flatten() - mean) / std).abs().max() < 0.1
    torch.testing.assert_close(layer.weight_std.detach().flatten(), std, rtol=0.05, atol=0)
