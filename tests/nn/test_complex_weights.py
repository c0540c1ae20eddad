"""Complex Parameters that a forward multiplies by: real and imaginary parts each have a posterior."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

import bayesify
from bayesify.errors import NothingToConvertError, StalePosteriorError
from bayesify.nn.settings import Method
from tests.support import METHODS, judge_mean


class Spectral(nn.Module):
    """A product at each of the lowest frequencies."""

    def __init__(self, dtype: torch.dtype = torch.cfloat) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, 3, 4, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        low = torch.fft.rfft(x)[..., :4]
        return torch.fft.irfft(torch.einsum("bix,iox->box", low, self.weight), n=x.shape[-1])


def converted(method: Method = "flipout", **policy: Any) -> Any:
    torch.manual_seed(0)
    model: Any = bayesify.convert(nn.Sequential(Spectral()), {"method": method, **policy})
    bayesify.set_posterior_std(model, 0.3)
    return model


@pytest.mark.parametrize("method", METHODS)
def test_the_output_has_the_moments_of_such_a_weight(method: Method) -> None:
    model, x = converted(method), torch.randn(1, 2, 8)
    with torch.no_grad(), bayesify.posterior_mean(model):
        mean = model(x)
        # linear in the weight: an output's variance is the sum of the squares of what one std of each part moves it by
        weight, moved = model[0].weight, []
        for at in range(weight.numel()):
            for part in (0.3, 0.3j):
                weight.view(-1)[at] += part
                moved.append(model(x) - mean)
                weight.view(-1)[at] -= part
    with torch.no_grad():
        out = torch.stack([model(x) for _ in range(4000)])
    expected = torch.stack(moved).square().sum(0)
    judge_mean("mean", out, mean)
    judge_mean("variance", (out - mean).square(), expected)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("parameterization", ["additive", "multiplicative"])
def test_the_kl_is_that_of_both_parts(method: Method, parameterization: str) -> None:
    model = converted(method, posterior={"parameterization": parameterization}, prior={"std": 0.7})
    layer = model[0]
    mean = torch.view_as_real(layer.weight)
    assert layer.weight_std.shape == mean.shape
    torch.testing.assert_close(layer.weight_std, torch.full_like(mean, 0.3))
    prior = [torch.as_tensor(each, dtype=torch.double).expand_as(mean) for each in layer.normal_prior("weight")]
    exact = kl_divergence(Normal(mean.double(), 0.3), Normal(*prior)).sum()
    torch.testing.assert_close(model.kl().double(), exact, rtol=1e-5, atol=0)


def test_scale_and_weight_get_the_gradients_of_a_draw() -> None:
    model, x = converted(), torch.randn(5, 2, 8)
    model(x).square().sum().backward()
    assert (torch.view_as_real(model[0].weight.grad).abs() > 0).any()
    assert (model[0].weight_rho.grad != 0).all(0).any()
    model.zero_grad()
    model.kl().backward()
    assert (model[0].weight_rho.grad != 0).all()


def test_all_of_its_life(tmp_path: Path) -> None:
    model, x = converted(), torch.randn(5, 2, 8)
    plain = Spectral()
    plain.load_state_dict(bayesify.revert(model)[0].state_dict())
    with bayesify.posterior_mean(model):
        assert torch.equal(model(x), plain(x))
    drawn = bayesify.revert(model, "sample")[0].weight
    assert (drawn.dtype, torch.equal(drawn, plain.weight)) == (torch.cfloat, False)
    with bayesify.draw(model):
        assert torch.equal(model(x), model(x))
    twin = copy.deepcopy(model)
    bayesify.set_posterior_std(twin, 0.1)
    twin.load_state_dict(model.state_dict())
    assert torch.equal(twin.kl(), model.kl())
    bayesify.save(model, tmp_path / "model.bayesify")
    opened = bayesify.load(tmp_path / "model.bayesify", allow=[f"{Spectral.__module__}.Spectral"])
    assert torch.equal(opened.kl(), model.kl())
    assert not torch.equal(opened(x), opened(x))


def test_a_replaced_one_is_refused_and_half_precision_leaves_it() -> None:
    model = converted()
    model.half()
    assert model[0].weight.dtype is torch.cfloat
    model[0].weight = nn.Parameter(model[0].weight.detach() * 2)
    with pytest.raises(StalePosteriorError):
        model.kl()


def test_double_precision_stays() -> None:
    model: Any = bayesify.convert(nn.Sequential(Spectral(torch.cdouble)))
    assert model(torch.randn(1, 2, 8, dtype=torch.double)).dtype is torch.double
    assert model[0].weight_std.dtype is torch.double


def test_the_plan_says_that_it_is_one_draw() -> None:
    (row,) = (row for row in bayesify.plan(nn.Sequential(Spectral())).rows if row.name == "0")
    assert row.notes == ("one draw of weight serves the whole batch: its numbers are complex",)
    assert row.parameters_after == 3 * row.parameters_before


def test_a_complex_layer_of_torchs_is_blocked() -> None:
    with pytest.raises(NothingToConvertError, match="complex64"):
        bayesify.plan(nn.Linear(2, 2, dtype=torch.cfloat))
