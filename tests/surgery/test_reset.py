"""Stds of one's own: a number for all, or what another method fitted, by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import bayesify
from bayesify.errors import UsageError

PARAMETERIZATIONS = ("additive", "multiplicative")


def network(parameterization: str = "additive") -> Any:
    policy = {"method": "flipout", "posterior": {"parameterization": parameterization}}
    return bayesify.convert(nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3)), policy)


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
@given(std=st.floats(1e-6, 1e3))
def test_one_number_for_all(parameterization: str, std: float) -> None:
    model = network(parameterization)
    bayesify.set_posterior_std(model, std)
    for _, layer in bayesify.variational_layers(model):
        torch.testing.assert_close(layer.weight_std, torch.full_like(layer.weight, std), rtol=1e-4, atol=0.0)


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
def test_a_tensor_or_a_number_by_name(parameterization: str) -> None:
    model = network(parameterization)
    std, before = torch.rand(5, 6) + 0.01, model[1].weight_std.detach().clone()
    bayesify.set_posterior_std(model, {"0.weight": std})
    torch.testing.assert_close(model[0].weight_std, std, rtol=1e-4, atol=0.0)
    assert torch.equal(model[1].weight_std, before)
    bayesify.set_posterior_std(model, {"1.weight": 0.2, "0.weight": torch.tensor(0.1)})
    assert torch.allclose(model[0].weight_std, torch.tensor(0.1))
    assert torch.allclose(model[1].weight_std, torch.tensor(0.2))


def test_any_name_of_a_shared_layer() -> None:
    shared = nn.Linear(4, 4)
    model: Any = bayesify.convert(nn.Sequential(shared, nn.Tanh(), shared), "flipout")
    for name in ("0.weight", "2.weight"):
        std = torch.rand(4, 4) + 0.01
        bayesify.set_posterior_std(model, {name: std})
        torch.testing.assert_close(model[0].weight_std, std)


def test_what_does_not_fit_is_told_at_once_and_nothing_is_set() -> None:
    model = network()
    before = model[0].weight_std.detach().clone()
    with pytest.raises(UsageError) as caught:
        bayesify.set_posterior_std(
            model,
            {"0.weight": torch.rand(5, 6) + 0.1, "0.wieght": 1.0, "1.weight": torch.ones(5), "1.bias": 1.0},
        )
    text = str(caught.value)
    assert "'0.wieght' is not the name of a posterior's mean. Did you mean '0.weight'?" in text
    assert "the std of '1.weight' has shape (5,) and should have (3, 5)" in text
    assert "'1.bias' is not the name" in text
    with pytest.raises(UsageError, match=r"'0\.weight' is not positive and finite everywhere"):
        bayesify.set_posterior_std(model, {"0.weight": torch.zeros(5, 6)})
    for wrong in (0, -1.0, float("nan"), float("inf"), torch.ones(5)):
        with pytest.raises(UsageError, match="is not a positive, finite number"):
            bayesify.set_posterior_std(model, wrong)
    assert torch.equal(model[0].weight_std, before)
