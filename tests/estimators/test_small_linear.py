"""Small linear layers: the numbers and gradients that the estimators' general form gives for the same seed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bayesify.estimators import noise
from bayesify.estimators.flipout import flipout
from bayesify.estimators.lrt import lrt
from bayesify.estimators.products import LinearProduct
from bayesify.estimators.small_linear import small_flipout, small_lrt
from bayesify.estimators.softplus import SMALL
from bayesify.estimators.std_forms import SoftplusStd

PAIRS = [pytest.param(small_flipout, flipout, id="flipout"), pytest.param(small_lrt, lrt, id="lrt")]


def _tensors(rows: int, inputs: int, outputs: int, bias: bool, rho: float = -2.0) -> list[Any]:
    """(x, mean, rho, bias), leaves."""
    mean = torch.randn(outputs, inputs)
    own = [torch.randn(rows, inputs), mean, rho + torch.randn_like(mean), torch.randn(outputs) if bias else None]
    return [each if each is None else each.requires_grad_() for each in own]


def _general(estimator: Any, x: Tensor, mean: Tensor, rho: Tensor, bias: Tensor | None) -> Tensor:
    return estimator(LinearProduct(), [x], mean, SoftplusStd(rho), bias)  # type: ignore[no-any-return]


def _outcomes(function: Any, tensors: list[Any], twice: bool = False) -> list[Tensor]:
    """The output for a seed and its gradients; with `twice` those of the squares of its gradients."""
    torch.manual_seed(7)
    output = function(*tensors)
    leaves = [each for each in tensors if each is not None and each.requires_grad]
    weights = torch.linspace(-1, 2, output.numel()).view_as(output)
    found = torch.autograd.grad((output * weights).sum() + output.square().sum(), leaves, create_graph=twice)
    if twice:
        found = torch.autograd.grad(sum(each.square().sum() for each in found), leaves)  # type: ignore[arg-type]
    return [output.detach(), *found]


@pytest.mark.parametrize(("small", "estimator"), PAIRS)
@pytest.mark.parametrize("twice", [False, True])
@settings(max_examples=40, deadline=None)
@given(
    sizes=st.tuples(st.integers(1, 9), st.integers(1, 20), st.integers(1, 20)), bias=st.booleans(),
    rho=st.sampled_from([-200.0, -80.0, -6.0, 0.0, 30.0]), frozen=st.sets(st.integers(0, 2), max_size=2),
)  # fmt: skip
def test_the_same_numbers_and_gradients(
    small: Any, estimator: Any, twice: bool, sizes: tuple[int, int, int], bias: bool, rho: float, frozen: set[int]
) -> None:
    tensors = _tensors(*sizes, bias, rho)
    for at in frozen:
        tensors[at].requires_grad_(False)
    expected = _outcomes(lambda *own: _general(estimator, *own), tensors, twice)
    for own, other in zip(_outcomes(small, tensors, twice), expected, strict=True):
        torch.testing.assert_close(own, other, rtol=2e-4, atol=2e-5 * float(1 + other.abs().max()))
    with torch.no_grad():
        torch.manual_seed(7)
        own = expected[0]
        torch.testing.assert_close(small(*tensors), own, rtol=1e-5, atol=1e-5 * float(1 + own.abs().max()))


@pytest.mark.parametrize(("small", "estimator"), PAIRS)
def test_no_rows(small: Any, estimator: Any) -> None:
    tensors = _tensors(0, 4, 3, True)
    output, *found = _outcomes(small, tensors)
    assert output.shape == (0, 3)
    assert all(each.count_nonzero() == 0 for each in found)


def test_lrt_has_no_gradient_of_noise_that_is_not_there() -> None:
    """x = 0 has no variance; its square root would have an infinite slope."""
    tensors = _tensors(3, 4, 5, True)
    tensors[0] = torch.zeros(3, 4, requires_grad=True)
    output, of_x, _, of_rho, _ = _outcomes(small_lrt, tensors)
    torch.testing.assert_close(output, tensors[3].detach().expand(3, 5))
    assert of_x.isfinite().all()
    assert of_rho.count_nonzero() == 0


@pytest.mark.parametrize(("small", "estimator"), PAIRS)
@pytest.mark.parametrize(
    "why", ["many rows", "large weight", "float64", "bfloat16", "sequence", "one row", "meta", "mixed"]
)
def test_others_are_left_to_the_general_form(small: Any, estimator: Any, why: str) -> None:
    x, mean, rho, bias = _tensors(2, 8, 8, True)
    if why == "many rows":
        x = torch.randn(max(noise.FEW, SMALL) // 8 + 1, 8)
    elif why == "large weight":
        mean = rho = torch.randn(SMALL // 8, 8)
    elif why in ("float64", "bfloat16", "meta"):
        x, mean, rho, bias = (each.to(why if why == "meta" else getattr(torch, why)) for each in (x, mean, rho, bias))
    elif why == "mixed":
        mean = mean.double()
    else:
        x = x[0] if why == "one row" else x.expand(3, 2, 8)
    assert small(x, mean, rho, bias) is None
