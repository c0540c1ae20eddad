"""`noise_dtype: bfloat16`: the law of the noise up to its rounding, the mean as exact as before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bayesify
from bayesify.estimators.flipout import flipout
from bayesify.estimators.lrt import lrt
from bayesify.estimators.products import ConvProduct, LinearProduct, Product
from tests.support import METHODS, as_if_compiling, fixed_noise, judge_mean

NARROW: Any = {"noise_dtype": torch.bfloat16}
ROUNDING = 2**-9  # of one number, relative, at most
CONV = ConvProduct((1,), (0,), (1,))


def _posterior(product: Product) -> tuple[Tensor, Tensor, Tensor]:
    """An input of one row, mean and std; neither a number of bfloat16."""
    torch.manual_seed(3)
    shape, x = ((40, 30), (1, 30)) if product is not CONV else ((40, 6, 5), (1, 6, 9))
    return 0.3 + torch.rand(x), torch.randn(shape), 0.1 + torch.rand(shape)


def _rounded(x: Tensor) -> Tensor:
    return x.bfloat16().double()


@pytest.mark.parametrize("product", [LinearProduct(), CONV])
@pytest.mark.parametrize("estimator", [flipout, lrt])
def test_mean_and_variance(estimator: Any, product: Product) -> None:
    """Of the rounded numbers, exactly; and of what they stand for within the documented error."""
    x, mean, std = _posterior(product)
    rows = x.expand(20_000, *x.shape[1:]) if estimator is lrt else x
    draws = [estimator(product, [rows], mean, std, **NARROW) for _ in range(1 if estimator is lrt else 3000)]
    deviation = torch.cat(draws).double() - product([x.double()], mean.double(), None)
    square = _rounded(x.square()), _rounded(std.square())
    if estimator is flipout:
        square = _rounded(x).square(), std.double().square()
    variance = product([square[0]], square[1], None)
    judge_mean("mean", (deviation / variance.sqrt()).flatten(), 0.0)
    judge_mean("variance", (deviation.square() / variance).flatten(), 1.0)
    exact = product([x.double().square()], std.double().square(), None)
    assert ((variance / exact).sqrt() - 1).abs().max() < ROUNDING * 2


@pytest.mark.parametrize("product", [LinearProduct(), CONV])
@pytest.mark.parametrize("estimator", [flipout, lrt])
def test_value_and_gradients_beside_those_in_full(estimator: Any, product: Product) -> None:
    """The same noise in both: what differs is rounding, and something does."""
    x, mean, std = (each.requires_grad_() for each in _posterior(product))
    bias, bias_std = torch.randn(40, requires_grad=True), torch.rand(40, requires_grad=True)
    leaves = (x, mean, std, bias, bias_std)

    def outcome(**options: Any) -> list[Tensor]:
        with fixed_noise():
            y = estimator(product, [x], mean, std, bias, bias_std, **options)
        return [y, *torch.autograd.grad((y * torch.linspace(-1, 2, y.numel()).view_as(y)).sum(), leaves)]

    full = outcome()
    for found, expected in zip(outcome(**NARROW), full, strict=True):
        assert found.dtype == expected.dtype == torch.float32
        assert (found - expected).norm() < 5 * ROUNDING * expected.norm()
    assert not torch.equal(outcome(**NARROW)[0], full[0])
    with as_if_compiling():
        compiled = outcome(**NARROW)
    for found, expected in zip(compiled, outcome(**NARROW), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-2)


def test_the_mean_is_not_rounded() -> None:
    x, mean, _ = _posterior(LinearProduct())
    for estimator in (flipout, lrt):
        y = estimator(LinearProduct(), [x], mean, torch.zeros_like(mean), **NARROW)
        assert torch.equal(y, LinearProduct()([x], mean, None))


def test_no_narrower_than_the_weights_already_are() -> None:
    x, mean, std = (each.bfloat16() for each in _posterior(LinearProduct()))
    with fixed_noise():
        narrow = flipout(LinearProduct(), [x], mean, std, **NARROW)
    with fixed_noise():
        assert torch.equal(narrow, flipout(LinearProduct(), [x], mean, std))


@pytest.mark.parametrize("method", METHODS)
def test_a_model_of_it_is_converted_shown_saved_and_loaded(method: str, tmp_path: Path) -> None:
    plain = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2))
    policy: Any = {"method": method, "posterior": {"noise_dtype": "bfloat16"}}
    assert "noise in bfloat16" in str(bayesify.plan(plain, policy))
    model, x = bayesify.convert(plain, policy), torch.randn(3, 6)
    bayesify.save(model, tmp_path / "m.bayesify")
    loaded: Any = bayesify.load(tmp_path / "m.bayesify")
    assert loaded[0]._settings == model[0]._settings
    full = bayesify.convert(plain, method)
    full.load_state_dict(model.state_dict())
    outputs = []
    for each in (model, loaded, full):
        torch.manual_seed(4)
        outputs.append(each(x))
    assert torch.equal(*outputs[:2])
    assert not torch.equal(outputs[0], outputs[2])
    torch.testing.assert_close(outputs[0], outputs[2], rtol=0, atol=5e-2)


def test_settings_of_a_file_that_knows_nothing_of_it(tmp_path: Path) -> None:
    model = bayesify.convert(nn.Sequential(nn.Linear(6, 4)), "flipout")
    vars(model[0]._settings.posterior).pop("noise_dtype")
    bayesify.save(model, tmp_path / "m.bayesify")
    loaded: Any = bayesify.load(tmp_path / "m.bayesify")
    assert loaded[0]._settings.posterior.narrow_dtype is None
