"""softplus(rho) in buffers, in series and in pieces: the same numbers as torch's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bayesify.estimators import pieces, softplus
from bayesify.estimators.flipout import flipout
from bayesify.estimators.lrt import lrt
from bayesify.estimators.pieces import in_pieces
from bayesify.estimators.products import LinearProduct
from bayesify.estimators.std_forms import SoftplusStd, form_of

SIZE = 3 * softplus.SMALL
RANGES = {"tiny": (-87.3, -60.0), "smaller": (-20.0, -5.21), "small": (-20.0, -3.51), "any": (-20.0, 30.0)}
RANGES |= {"large": (30.0, 1e4)}


@pytest.mark.parametrize("span", RANGES)
@pytest.mark.parametrize("size", [7, SIZE])
def test_std_and_slope_are_exact(span: str, size: int) -> None:
    rho = torch.linspace(*RANGES[span], size)
    wide = rho.double()
    std = wide.maximum(torch.zeros(())) + torch.log1p(torch.exp(-wide.abs()))
    slope = torch.sigmoid(wide) / std
    for write, expected in ((softplus.write_std, std), (softplus.write_slope, slope)):
        found, exp = torch.empty_like(rho), torch.empty_like(rho)
        write(rho, found, exp)
        torch.testing.assert_close(found.double(), expected, rtol=3e-6, atol=0)
    if span in ("smaller", "small"):
        found, one = torch.empty_like(rho), torch.ones_like(rho)
        softplus.write_square(rho, found, exp)
        torch.testing.assert_close(found.double(), std.square(), rtol=5e-6, atol=0)
        softplus.times_square_slope_(one, rho, found, exp)
        torch.testing.assert_close(one.double(), std * torch.sigmoid(wide), rtol=3e-6, atol=0)
    both = [torch.empty_like(rho) for _ in range(3)]
    softplus.write_std_and_slope(rho, *both)
    for found, expected in zip(both, (std, slope), strict=False):
        torch.testing.assert_close(found.double(), expected, rtol=3e-6, atol=0)


@pytest.mark.parametrize("most", [1e-5, 1e-4, 1e-3, 0.004, 0.01, 0.03])
@pytest.mark.parametrize("name", ["STD", "SLOPE", "SQUARE_SLOPE"])
def test_what_is_written_by_series(name: str, most: float) -> None:
    series = getattr(softplus, name)
    x = torch.linspace(0, most, 999)
    exact = sum(each * x.double() ** k for k, each in enumerate(series))
    for error in (2e-6, 1e-7):
        written, multiple = torch.empty_like(x), torch.empty_like(x)
        softplus.write_series(x, series, most, written, error=error)
        softplus.write_multiple(x, series, most, multiple, error=error)
        torch.testing.assert_close(written.double(), exact, rtol=error + 1.2e-7, atol=0)
        torch.testing.assert_close(multiple.double(), exact * x, rtol=error + 2.4e-7, atol=0)


@pytest.mark.parametrize("most", [1e-5, 1e-3, 0.004, 0.01, 0.03])
@pytest.mark.parametrize("name", ["STD", "SLOPE", "SQUARE", "SQUARE_SLOPE", "LOG"])
def test_shortened_series_are_near_enough(name: str, most: float) -> None:
    """And have fewer terms the smaller their numbers are."""
    series = getattr(softplus, name)
    found = softplus.shortened(series, 1e-7, most)
    x = torch.linspace(0, most, 999, dtype=torch.float64)
    exact, near = (sum(each * x**k for k, each in enumerate(own)) for own in (series, found))
    assert (exact - near).abs().max() <= 1.0001e-7
    assert len(found) <= {1e-5: 2, 1e-3: 3, 0.004: 3, 0.01: 3, 0.03: 4}[most]


def test_below_the_smallest_number_the_slope_stays_finite() -> None:
    for size in (3, SIZE):
        rho = torch.full((size,), -200.0)
        slope, exp = torch.empty_like(rho), torch.empty_like(rho)
        softplus.write_slope(rho, slope, exp)
        assert torch.equal(slope, torch.ones(size))
        form, _ = form_of(SoftplusStd(rho))
        of_rho = form.through_deviation_(torch.ones(size), torch.ones(size), rho)
        torch.testing.assert_close(of_rho, torch.ones(size))


@pytest.mark.parametrize("layout", ["whole", "pieces", "transposed", "strided"])
def test_every_element_is_in_one_piece(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "PIECE", 10)
    x = torch.arange(12.0 if layout == "whole" else 90.0)[: 9 if layout == "whole" else None]
    x = {"transposed": x.view(9, -1).T, "strided": x.view(3, -1)[:, ::2]}.get(layout, x.view(3, -1))
    result, scalar = torch.zeros_like(x), torch.tensor(2.0)
    shapes = set()
    for given, factor, number, out, buffer in in_pieces(x, scalar, 0.5, result, scratch=1):
        assert (factor, number) == (2.0, 0.5)
        assert buffer.shape == given.shape == out.shape
        torch.mul(given, factor * number, out=buffer)
        out.add_(buffer + 1)
        shapes.add(tuple(given.shape))
    assert torch.equal(result, x + 1)
    assert len(shapes) == 1
    in_pieces_of_ten = shapes == {(10 // torch.get_num_threads() * torch.get_num_threads(),)}
    assert in_pieces_of_ten == (layout in ("pieces", "transposed"))


def _outcome(estimator: Any, std: Any, rho: Tensor, x: Tensor, mean: Tensor) -> list[Tensor]:
    torch.manual_seed(5)
    y = estimator(LinearProduct(), [x], mean, std)
    return [y, *torch.autograd.grad(y.square().sum(), (x, mean, rho))]


@pytest.mark.parametrize("rows", [3, 170])
@pytest.mark.parametrize("shift", [-6.5, -2.0])
@pytest.mark.parametrize("estimator", [flipout, lrt])
def test_in_pieces_and_by_series_as_from_the_std_itself(
    estimator: Any, shift: float, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pieces, "PIECE", softplus.SMALL)
    rho = (torch.rand(rows, 101) + shift).requires_grad_()
    x, mean = torch.randn(5, 101, requires_grad=True), torch.randn(rows, 101, requires_grad=True)
    found = _outcome(estimator, SoftplusStd(rho), rho, x, mean)
    expected = _outcome(estimator, F.softplus(rho), rho, x, mean)
    torch.testing.assert_close(found, expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("estimator", [flipout, lrt])
def test_the_gradient_has_a_gradient(estimator: Any) -> None:
    """x given twice: each place of it has a gradient of its own."""
    rho, mean = torch.randn(3, 4, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)
    x = torch.randn(2, 4, dtype=torch.float64)

    def output(x: Tensor, mean: Tensor, rho: Tensor) -> Tensor:
        torch.manual_seed(2)
        y: Tensor = estimator(LinearProduct(), [x], mean, SoftplusStd(rho))
        return y

    leaves = tuple(leaf.requires_grad_() for leaf in (x, mean, rho))
    assert torch.autograd.gradcheck(output, leaves)
    assert torch.autograd.gradgradcheck(output, leaves)


def test_a_gradient_that_shares_memory_is_not_written_to() -> None:
    form, rho = form_of(SoftplusStd(torch.randn(4, 3)))
    grad = torch.ones(1, 3).expand(4, 3)
    form.through_square_(grad, rho)
    assert torch.equal(grad, torch.ones(4, 3))
