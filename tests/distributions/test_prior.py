"""KL(q‖p) of every prior, against torch.distributions and against numerical quadrature."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Normal as TorchNormal
from torch.distributions import kl_divergence

from bayesify.distributions.normal_kl import NormalTerm, normal_kls
from bayesify.distributions.posterior import Scale
from bayesify.distributions.prior import (
    LogUniform,
    Normal,
    ScaleMixture,
    log_uniform_kl,
    normal_kl,
    scale_mixture_kl,
)
from bayesify.distributions.scale import magnitude
from tests.support import as_if_compiling, judge_mean

STDS = [1.2e-38, 1e-30, 1e-22, 1e-8, 1e-6, 1e-4, 1e-2, 1.0, 1e2, 1e4]
EULER = 0.5772156649015329
LOG_UNIFORM_BOUND = 0.0095  # nats per weight; the largest error over log alpha in [-8, 8] is 0.0094, at -3.5


@pytest.mark.parametrize("std", STDS)
@pytest.mark.parametrize("prior_std", [1e-3, 1.0, 50.0])
@pytest.mark.parametrize("compiling", [False, True])
@pytest.mark.parametrize("elementwise", [False, True])
def test_normal_kl_and_its_gradients(std: float, prior_std: float, compiling: bool, elementwise: bool) -> None:
    """In float32, against torch.distributions in float64, for std = softplus(rho)."""
    mean = torch.randn(37)
    rho = (torch.full((37,), std) + torch.log(-torch.expm1(torch.full((37,), -std)))).requires_grad_()
    mean.requires_grad_()
    prior_mean = torch.randn(37) if elementwise else 0.25
    prior_scale = prior_std * (1 + torch.rand(37)) if elementwise else prior_std
    wide = [tensor.detach().double().requires_grad_() for tensor in (mean, rho)]
    q = TorchNormal(wide[0], F.softplus(wide[1]))
    p = TorchNormal(*(torch.as_tensor(tensor, dtype=torch.float64) for tensor in (prior_mean, prior_scale)))
    exact = kl_divergence(q, p).sum()
    expected = torch.autograd.grad(exact, wide)
    with as_if_compiling() if compiling else torch.enable_grad():
        value = normal_kls([NormalTerm(mean, rho, prior_mean, prior_scale)])
    plain = normal_kl(mean, F.softplus(rho), prior_mean, prior_scale)
    for found in (value, plain):
        torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-6 * 37)
        gradients = torch.autograd.grad(found, (mean, rho))
        for gradient, reference in zip(gradients, expected, strict=True):
            assert gradient.isfinite().all()
            torch.testing.assert_close(gradient.double(), reference, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("requires_grad", [False, True])
def test_the_sum_over_many_weights_is_right(requires_grad: bool) -> None:
    """A running sum of 2²⁴ float32 numbers stops growing; and the mean square of as many weights sets a std's floor."""
    count = 1 << 24
    mean = torch.full((count,), 1.3)
    rho = torch.full((count,), -3.0).requires_grad_(requires_grad)
    value = normal_kls([NormalTerm(mean, rho, 0.1, 0.7)])
    exact = kl_divergence(TorchNormal(1.3, F.softplus(torch.tensor(-3.0).double())), TorchNormal(0.1, 0.7)) * count
    assert value.item() == pytest.approx(exact.item(), rel=5e-6)  # all weights are rounded alike
    assert magnitude(mean, 1, floor=2.0)[0].item() == pytest.approx(2.6, rel=1e-6)


def test_kl_of_the_prior_itself_is_zero() -> None:
    mean, rho = torch.randn(10_001), torch.randn(10_001).requires_grad_()
    value = normal_kls([NormalTerm(mean, rho, mean.clone(), F.softplus(rho.detach()))])
    assert abs(value) < 1e-6 * mean.numel()


def test_kl_is_of_q_to_p_and_summed() -> None:
    """Not the reverse, and not a mean: two equal weights count twice."""
    one = normal_kl(torch.zeros(1), torch.full((1,), 0.5), 0.0, 1.0)
    assert one.item() == pytest.approx(math.log(2) + 0.125 - 0.5)
    assert normal_kl(torch.zeros(2), torch.full((2,), 0.5), 0.0, 1.0).item() == pytest.approx(2 * one.item())


def test_softplus_kl_has_second_derivatives() -> None:
    mean, rho = (torch.randn(7, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(lambda *q: normal_kls([NormalTerm(*q, 0.1, 0.7)]), (mean, rho))
    assert torch.autograd.gradgradcheck(lambda *q: normal_kls([NormalTerm(*q, 0.1, 0.7)]), (mean, rho))


def exact_log_uniform_kl(log_alpha: Tensor) -> Tensor:
    """KL(N(1, alpha) ‖ log-uniform) by quadrature, with the constant that makes it vanish for alpha → ∞.

    It is E log|m + z| + (EULER + log 2)/2 for m = 1/sqrt(alpha), z ~ N(0, 1). With |m + z| = exp(u) the integrand is
    smooth.
    """
    m = (-log_alpha / 2).exp()[:, None]
    u = torch.linspace(-40, 5, 90_001, dtype=torch.float64)
    t = u.exp()
    density = torch.exp(-((t - m) ** 2) / 2) + torch.exp(-((t + m) ** 2) / 2)
    return torch.trapezoid(u * t * density, u) / math.sqrt(2 * math.pi) + (EULER + math.log(2)) / 2


def test_log_uniform_kl_is_near_the_exact_one() -> None:
    """Molchanov et al. 2017, eq. 14: within LOG_UNIFORM_BOUND of the exact KL, which runs from 0 to 4.6 nats."""
    log_alpha = torch.linspace(-8, 8, 161, dtype=torch.float64)
    exact = exact_log_uniform_kl(log_alpha)
    found = torch.stack([log_uniform_kl(tensor) for tensor in log_alpha])
    error = (found - exact).abs().max().item()
    assert error < LOG_UNIFORM_BOUND, f"the largest error is {error:.5f} nats"
    assert (found.diff() < 0).all()
    assert found[-1] < 0.01


def test_log_uniform_kl_has_finite_gradients_far_out() -> None:
    log_alpha = torch.tensor([-200.0, -30.0, 0.0, 30.0, 200.0], requires_grad=True)
    (gradient,) = torch.autograd.grad(log_uniform_kl(log_alpha), log_alpha)
    torch.testing.assert_close(gradient[[0, -1]], torch.tensor([-0.5, 0.0]))
    assert log_uniform_kl(log_alpha.half()).dtype == torch.float32


def test_scale_mixture_kl_is_an_unbiased_fresh_estimate() -> None:
    prior = ScaleMixture(0.3, 1.0, 0.05)
    mean, std = torch.tensor([0.0, 0.02, 0.5, -2.0]).double(), torch.tensor([0.01, 0.3, 0.1, 1.0]).double()
    z = torch.linspace(-12, 12, 200_001, dtype=torch.float64)[:, None]
    weight, q = mean + std * z, TorchNormal(0.0, 1.0).log_prob(z)
    wide, narrow = (TorchNormal(0.0, tensor).log_prob(weight) for tensor in (prior.std1, prior.std2))
    log_p = torch.log(prior.pi * wide.exp() + (1 - prior.pi) * narrow.exp())
    exact = torch.trapezoid(q.exp() * (q - std.log() - log_p), z.squeeze(), dim=0)
    estimates = torch.stack(
        [torch.stack([scale_mixture_kl(m, s, prior) for m, s in zip(mean, std, strict=True)]) for _ in range(3000)]
    )
    judge_mean("KL", estimates, exact)
    assert not torch.equal(estimates[0], estimates[1])
    whole = torch.stack([scale_mixture_kl(mean, std, prior) for _ in range(3000)])
    judge_mean("KL, summed", whole, exact.sum())


def test_scale_mixture_of_equal_parts_is_a_normal() -> None:
    mean, std = torch.randn(5).double(), torch.rand(5).double()
    estimates = torch.stack([scale_mixture_kl(mean, std, ScaleMixture(0.4, 0.7, 0.7)) for _ in range(4000)])
    judge_mean("KL", estimates, normal_kl(mean, std, 0.0, 0.7))


@pytest.mark.parametrize("std", STDS)
def test_scale_mixture_kl_is_finite(std: float) -> None:
    mean = torch.tensor([0.0, 1e-3, 40.0], requires_grad=True)
    scale = torch.full((3,), std, requires_grad=True)
    value = scale_mixture_kl(mean, scale, ScaleMixture())
    assert value.isfinite()
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(value, (mean, scale)))


def test_priors_as_policies_write_them() -> None:
    assert str(Normal()) == "N(w₀, 3×init)"
    assert str(Normal(0.0, Scale("constant", 1.0))) == "N(0, 1)"
    assert str(LogUniform()) == "log-uniform"
    assert Normal(0.0, Scale("fan_in", 1.0)).to_dict() == {"family": "normal", "mean": 0.0, "std": {"fan_in": 1.0}}
    assert ScaleMixture(0.5, 1.0, 0.1).to_dict() == {"family": "scale_mixture", "pi": 0.5, "std1": 1.0, "std2": 0.1}
    assert str(Normal("auto")) == "auto"
    assert Normal("auto").to_dict() == {"family": "normal", "mean": "auto"}
    assert Normal().settled(Scale("relative", 0.1), 1).std == Scale("relative", pytest.approx(0.3))
    assert Normal(0.0, Scale("fan_in", 1.0)).settled(Scale("relative", 0.1), 1).std == Scale("fan_in", 1.0)





def test_auto_is_centred_at_zero_in_shallow_networks_and_at_the_weights_in_deep_ones() -> None:
    init_std = Scale("relative", 0.1)
    assert Normal("auto").settled(init_std, 6) == Normal(0.0, Scale("fan_in", 5.0))
    assert Normal("auto").settled(init_std, 7) == Normal().settled(init_std, 7)
