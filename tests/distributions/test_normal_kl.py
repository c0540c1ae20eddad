"""The KL of many posteriors in one pass: small ones together, large ones in pieces, whatever their priors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from bayesify.distributions import Scale
from bayesify.distributions.normal_kl import SMALL, NormalTerm, normal_kls
from bayesify.distributions.normal_kl_pieces import log_sum
from bayesify.distributions.prior import normal_kl
from bayesify.estimators import pieces
from tests.support import as_if_compiling

RELATIVE = Scale("relative", 0.3, floor=0.5)


def _terms(dtype: torch.dtype = torch.float32) -> list[NormalTerm]:
    """Of every kind, small and large, in no order; two of the small ones are of one kind."""
    torch.manual_seed(0)
    found = []
    for shape in ((3, 4), (SMALL // 64, 65), (2, 3, 2), (5,)):
        mean, rho = (torch.randn(shape, dtype=dtype) for _ in range(2))
        rho = (rho - 6).requires_grad_()
        mean.requires_grad_()
        others: list[Any] = [
            (0.0, 0.5), (0.3, 0.7), (0.1, 0.2 + torch.rand(shape, dtype=dtype)),
            (torch.randn(shape, dtype=dtype), 2.0), (torch.randn(shape, dtype=dtype), RELATIVE),
            (torch.zeros(shape, dtype=dtype), RELATIVE),
        ]  # fmt: skip
        found += [NormalTerm(mean, rho, *prior, fan_in=9) for prior in others]
    return found


def _exact(terms: list[NormalTerm]) -> tuple[Tensor, dict[int, Tensor]]:
    """By torch.distributions in float64, and the gradients by the id of what they are in."""
    total, leaves = torch.zeros((), dtype=torch.float64), {}
    for term in terms:
        mean, rho = (
            leaves.setdefault(id(x), x.detach().double().requires_grad_()) for x in (term.mean, term.rho)
        )
        centre = torch.as_tensor(term.prior_mean, dtype=torch.float64)
        std: Any = term.prior_std
        if isinstance(std, Scale):
            root = centre.square().mean().sqrt()
            std = 0.3 * centre.abs().maximum(0.5 * (root if root > 0 else torch.tensor(1 / 3)))
        p = Normal(centre, torch.as_tensor(std, dtype=torch.float64))
        total = total + kl_divergence(Normal(mean, F.softplus(rho)), p).sum()
    gradients = torch.autograd.grad(total, list(leaves.values()))
    return total, dict(zip(leaves, gradients, strict=True))


@pytest.mark.parametrize("way", ["whole", "pieces", "compiler"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_terms_of_all_kinds(way: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "PIECE", 1000 if way == "pieces" else 2**16)
    terms = _terms(dtype)
    exact, expected = _exact(terms)
    leaves = {id(x): x for term in terms for x in (term.mean, term.rho)}
    if way == "compiler":
        with as_if_compiling():
            total = normal_kls(terms)
    else:
        total = normal_kls(terms)
    assert total.dtype == dtype
    torch.testing.assert_close(total.double(), exact, rtol=1e-6, atol=0)
    for name, gradient in zip(leaves, torch.autograd.grad(3 * total, list(leaves.values())), strict=True):
        assert gradient.shape == leaves[name].shape
        torch.testing.assert_close(gradient.double(), 3 * expected[name], rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize("prior_mean", [0.0, 0.05, "tensor"])
@pytest.mark.parametrize("prior_std", [0.5, 0.007, 1e-4])
def test_stds_that_are_all_small(prior_std: float, prior_mean: Any) -> None:
    """Series take the place of the logarithm; at 0.007 posterior and prior are nearly the same."""
    shape = (SMALL // 64, 65)
    mean = (prior_std * torch.randn(shape)).requires_grad_()
    std = 0.007 * (1 + 0.1 * torch.randn(shape)).clamp(0.01, 1.4) if prior_std == 0.007 else torch.rand(shape) / 101
    rho = torch.log(torch.expm1(std.double())).float().clamp_min(-80).requires_grad_()
    centre: Any = 0.01 * torch.randn(shape) if prior_mean == "tensor" else prior_mean
    term = NormalTerm(mean, rho, centre, prior_std)
    exact, expected = _exact([term])
    total = normal_kls([term])
    torch.testing.assert_close(total.double(), exact, rtol=1e-6, atol=0)
    for leaf, found in zip((mean, rho), torch.autograd.grad(3 * total, (mean, rho)), strict=True):
        torch.testing.assert_close(found.double(), 3 * expected[id(leaf)], rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize("prior_std", [RELATIVE, 0.5])
def test_the_kl_is_finite_below_the_smallest_number(prior_std: Any) -> None:
    rho = torch.full((SMALL,), -200.0, requires_grad=True)
    total = normal_kls([NormalTerm(torch.zeros(SMALL), rho, torch.ones(SMALL), prior_std)])
    assert total.isfinite()
    assert torch.autograd.grad(total, rho)[0].isfinite().all()


def test_stds_below_the_smallest_number() -> None:
    """The KL and its gradient stay finite, where exp(rho) is none any more."""
    rho = torch.full((SMALL,), -200.0, requires_grad=True)
    total = normal_kls([NormalTerm(torch.zeros(SMALL), rho, 0.0, 1.0)])
    torch.testing.assert_close(total.detach() / SMALL, torch.tensor(199.5))
    assert torch.equal(torch.autograd.grad(total, rho)[0], -torch.ones(SMALL))


def test_each_alone_and_all_together_are_the_same() -> None:
    terms = _terms(torch.float64)
    alone = torch.stack([normal_kls([term]) for term in terms]).sum()
    torch.testing.assert_close(normal_kls(terms), alone)


def test_nothing_is_kept_but_the_parameters() -> None:
    terms, kept = _terms(), []
    with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda given: given):
        normal_kls(terms)
    given = {x.data_ptr() for term in terms for x in (term.mean, term.rho)}
    assert kept
    assert {x.data_ptr() for x in kept} <= given


def test_without_gradients_for_some() -> None:
    one, other = _terms()[:2]
    frozen = NormalTerm(one.mean.detach(), one.rho, 0.0, 1.0)
    total = normal_kls([frozen, other])
    found = torch.autograd.grad(total, (one.rho, other.mean))
    expected = torch.autograd.grad(normal_kls([frozen]) + normal_kls([other]), (one.rho, other.mean))
    torch.testing.assert_close(found, expected)


def test_layouts_other_than_contiguous() -> None:
    shape = (8, 4, 3, 3)
    mean, rho, centre = (torch.randn(shape).to(memory_format=torch.channels_last) for _ in range(3))
    mean.requires_grad_()
    rho = (rho - 3).requires_grad_()
    big = [torch.randn(SMALL // 4, 4, 3, 3).to(memory_format=torch.channels_last).requires_grad_() for _ in range(2)]
    terms = [NormalTerm(mean, rho, centre, RELATIVE), NormalTerm(mean, rho, centre, 0.3), NormalTerm(*big, 0.0, 1.0)]
    exact, expected = _exact(terms)
    total = normal_kls(terms)
    torch.testing.assert_close(total.double(), exact, rtol=1e-6, atol=0)
    for leaf in (mean, rho, *big):
        (found,) = torch.autograd.grad(total, leaf, retain_graph=True)
        torch.testing.assert_close(found.double(), expected[id(leaf)], rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize("size", [SMALL, 3 * SMALL + 1])
@pytest.mark.parametrize("prior", [(0.0, 0.16), ("weights", RELATIVE), ("weights", "tensor")])
@pytest.mark.parametrize("largest", [3e-5, 0.003, 0.029])
def test_sums_of_series(largest: float, prior: tuple[Any, Any], size: int) -> None:
    """However many terms of them the largest std wants."""
    torch.manual_seed(0)
    centre = 0.1 * torch.randn(size)
    std = largest * torch.rand(size).clamp(0.01).double()
    rho = torch.log(torch.expm1(std)).float().requires_grad_()
    mean = (centre + 0.01 * torch.randn(size)).requires_grad_()
    prior_std: Any = 0.05 + torch.rand(size) if prior[1] == "tensor" else prior[1]
    term = NormalTerm(mean, rho, centre if prior[0] == "weights" else prior[0], prior_std, fan_in=9)
    exact, expected = _exact([term])
    total = normal_kls([term])
    assert total.dtype == torch.float32
    torch.testing.assert_close(total.double(), exact, rtol=1e-6, atol=0)
    for leaf, found in zip((mean, rho), torch.autograd.grad(3 * total, (mean, rho)), strict=True):
        torch.testing.assert_close(found.double(), 3 * expected[id(leaf)], rtol=5e-6, atol=1e-5)


@pytest.mark.parametrize("span", [(-0.1, 0.1), (-9, 9), (-40, 40), (-80, 80), (-40, -30), (30, 40)])
def test_the_logarithm_of_products_is_the_sum_of_logarithms(span: tuple[float, float]) -> None:
    """Also where products of eight are no normal numbers."""
    torch.manual_seed(0)
    numbers = torch.empty(2**13).uniform_(*span).exp()
    wide = numbers.double().log()
    found = log_sum(numbers).double()
    assert abs(found - wide.sum()) < 1e-6 * wide.abs().sum() + 1e-7 * len(numbers)


def test_the_logarithm_of_products_that_are_small_on_the_way() -> None:
    """Four factors multiply to a number that float32 has with three bits; eight to one that it has with all."""
    numbers = torch.cat([torch.full((2**14,), 1.7e-11), torch.full((2**14,), 1.3e4)])
    torch.testing.assert_close(log_sum(numbers).double(), numbers.double().log().sum(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("prior_std", [0.007, RELATIVE])
def test_posteriors_that_are_nearly_the_prior(prior_std: Any) -> None:
    """What sums of series leave of each other here would be rounding errors."""
    torch.manual_seed(0)
    centre = 0.02 + 0.01 * torch.rand(2 * SMALL)
    prior = 0.3 * centre if prior_std is RELATIVE else torch.full_like(centre, prior_std)
    rho = torch.log(torch.expm1(prior.double() * (1 + 0.03 * torch.randn(len(centre))))).float().requires_grad_()
    term = NormalTerm(centre.clone().requires_grad_(), rho, centre, prior_std)
    exact, _ = _exact([term])
    assert 5e-4 < float(exact.detach()) / len(centre) < 2e-3
    torch.testing.assert_close(normal_kls([term]).double(), exact, rtol=1e-5, atol=0)


@pytest.mark.parametrize("excess", [0.01, 0.1])
@pytest.mark.parametrize("std", [0.001, 0.004, 0.02])
def test_stds_a_little_above_the_priors(std: float, excess: float) -> None:
    """Near the prior the KL is about excess² an element, and what is off in its std counts by twice of excess."""
    torch.manual_seed(0)
    wide = std * (1 + excess * (1 + 0.2 * torch.randn(4 * SMALL).double()))
    rho = torch.log(torch.expm1(wide)).float()
    exact = kl_divergence(Normal(0, F.softplus(rho.double())), Normal(0, std)).sum()
    total = normal_kls([NormalTerm(torch.zeros(4 * SMALL), rho, 0.0, std)]).double()
    torch.testing.assert_close(total, exact, rtol=6e-7 / excess, atol=0)


@pytest.mark.parametrize("sizes", [(64, 64, 64), (64, 48, 0)])
def test_small_terms_under_a_relative_prior_have_thresholds_of_their_own(sizes: tuple[int, ...]) -> None:
    """The weights of one are a thousandth of the other's, those of the last are all zero."""
    terms = []
    for size, factor in zip(sizes, (1.0, 1e-3, 0.0), strict=True):
        centre = torch.randn(size) * factor
        terms.append(NormalTerm(centre + 1e-4, torch.full((size,), -6.0), centre, Scale("relative", 0.3, 0.1), 8))
    want = sum(float(normal_kl(term.mean.double(), F.softplus(term.rho.double()), *term.prior)) for term in terms)
    assert float(normal_kls(terms)) == pytest.approx(want, rel=1e-4)
