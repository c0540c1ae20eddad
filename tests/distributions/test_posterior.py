"""How a posterior's std is parameterized and where it starts."""

from __future__ import annotations

import math

import pytest
import torch

from bayesify.distributions.posterior import RELATIVE_FLOOR, Parameterization, Posterior, Scale, magnitude
from bayesify.estimators.precision import widened
from tests.support import PARAMETERIZATIONS

STDS = [1.2e-38, 1e-22, 1e-8, 1e-6, 1e-3, 0.1, 1.0, 30.0, 1e4]


@pytest.mark.parametrize("std", STDS)
@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_std_inverts_scale_of(parameterization: Parameterization, std: float, dtype: torch.dtype) -> None:
    if parameterization == "multiplicative":
        std = max(std, RELATIVE_FLOOR)
    posterior, mean = Posterior(parameterization), torch.tensor([0.5, -2.0, 1e-4], dtype=dtype)
    scale = posterior.scale_of(torch.full_like(mean, std), mean).requires_grad_()
    found = posterior.std(mean, scale)
    torch.testing.assert_close(found, torch.full_like(mean, std), rtol=1e-4, atol=0)
    found.sum().backward()
    assert scale.grad is not None
    assert scale.grad.isfinite().all()


def test_the_formulas() -> None:
    mean, scale = torch.randn(50, dtype=torch.float64), torch.randn(50, dtype=torch.float64)
    torch.testing.assert_close(Posterior("additive").std(mean, scale), torch.log1p(scale.exp()))
    torch.testing.assert_close(Posterior("multiplicative").std(mean, scale), mean.abs() * scale.exp().sqrt())


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (Scale("constant", 0.02), [0.02, 0.02, 0.02, 0.02]),
        (Scale("relative", 0.1), [0.1, 0.2, 0.05, 0.1 * 1e-3 * math.sqrt(5.25 / 4)]),
        (Scale("relative", 0.1, floor=0.5), [0.1, 0.2, 0.05 * math.sqrt(5.25 / 4), 0.05 * math.sqrt(5.25 / 4)]),
        (Scale("fan_in", 0.5), [0.25, 0.25, 0.25, 0.25]),
    ],
)
def test_initial_std(
    parameterization: Parameterization, dtype: torch.dtype, rule: Scale, expected: list[float]
) -> None:
    mean, posterior = torch.tensor([1.0, -2.0, 0.5, 0.0], dtype=dtype), Posterior(parameterization, rule)
    scale = posterior.start(mean, fan_in=4)
    assert scale.dtype == torch.float32
    assert scale.isfinite().all()
    seen = mean.clone()
    if parameterization == "multiplicative":  # a weight of zero has no relative noise; its scale waits for it to move
        seen[3] = 1e-3 * math.sqrt(5.25 / 4)
    found = posterior.std(seen.double(), scale.double())
    rtol = {torch.float32: 1e-5, torch.bfloat16: 0.05, torch.float16: 0.01}[dtype]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=rtol, atol=0)


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
def test_weights_that_are_all_zero_are_not_pinned_there(parameterization: Parameterization) -> None:
    """1/sqrt(fan_in) stands in for their root mean square, so that the floor is a fraction of that."""
    posterior = Posterior(parameterization, Scale("relative", 0.1, floor=0.5))
    scale = posterior.start(torch.zeros(6), fan_in=25)
    assert scale.isfinite().all()
    expected = 0.1 * 0.5 / 5 if parameterization == "additive" else 1e-8
    torch.testing.assert_close(posterior.std(torch.zeros(6), scale), torch.full((6,), expected), rtol=1e-4, atol=0)


@pytest.mark.parametrize("size", [1e-15, 1.0, 1e15])
def test_magnitude_keeps_its_precision(size: float) -> None:
    found = magnitude(torch.tensor([size, 0.0, -size]), fan_in=4, floor=0.1)
    torch.testing.assert_close(found / size, torch.tensor([1.0, 0.1 * math.sqrt(2 / 3), 1.0]))


def test_auto_shares_one_budget_over_the_depth() -> None:
    expected = {1: 0.2, 4: 0.1, 7: 0.4 / 7, 100: 0.004}
    for layers, relative in expected.items():
        settled = Posterior().for_depth(layers)
        assert settled.init_std is not None
        assert settled.init_std.kind == "relative"
        assert settled.init_std.value == pytest.approx(relative)
    given = Posterior("additive", Scale("constant", 0.3))
    assert given.for_depth(9) is given


def test_scales_as_policies_write_them() -> None:
    assert Scale("constant", 0.1).to_dict() == 0.1
    assert Scale("fan_in", 2.0).to_dict() == {"fan_in": 2.0}
    assert Posterior().to_dict() == {"parameterization": "additive", "init_std": "auto"}
    assert str(Scale("relative", 0.1)) == "0.1·|w|"
    assert Scale("relative", 0.1, floor=0.2).times(3) == Scale("relative", pytest.approx(0.3), 0.2)
    with pytest.raises(ValueError, match="a rule for priors"):
        Scale("init_std", 3.0).std(torch.ones(2), 1)


def test_widened() -> None:
    assert widened(torch.ones(2, dtype=torch.float16)).dtype == torch.float32
    assert widened(torch.ones(2, dtype=torch.bfloat16)).dtype == torch.float32
    assert widened(torch.ones(2, dtype=torch.float64)).dtype == torch.float64
