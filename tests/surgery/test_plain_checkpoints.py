"""Weights of the plain network in a converted one, and posteriors that start again."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import bayesify
from bayesify.errors import (
    UninitializedLayerError,
    UsageError,
)
from tests.nets import SmallResNet, Tangled, snapshot
from tests.surgery.models import POLICIES, VARIATIONAL_BIAS


def test_set_posterior_std() -> None:
    model = bayesify.convert(Tangled(), VARIATIONAL_BIAS)
    bayesify.set_posterior_std(model, 0.25)
    for _, layer in bayesify.variational_layers(model):
        for name in layer.means():
            torch.testing.assert_close(layer.std_of(name), torch.full_like(getattr(layer, name), 0.25))
    for wrong in (0, -1.0, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="positive"):
            bayesify.set_posterior_std(model, wrong)
    with pytest.raises(UninitializedLayerError, match="'0' has not seen data"):
        bayesify.set_posterior_std(bayesify.convert(nn.Sequential(nn.LazyLinear(2))), 0.1)


@pytest.mark.parametrize("policy", POLICIES, ids=str)
@pytest.mark.parametrize("make", [SmallResNet, Tangled])
def test_a_plain_checkpoint_loads_as_if_it_had_been_there_at_conversion(make: Any, policy: Any) -> None:
    trained = make()
    converted = bayesify.convert(make(), policy)
    bayesify.load_weights(converted, trained.state_dict())
    expected = bayesify.convert(trained, policy).state_dict()
    assert converted.state_dict().keys() == expected.keys()
    for name, value in converted.state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_a_checkpoint_that_does_not_fit_is_refused_whole() -> None:
    model = bayesify.convert(SmallResNet())
    before, given = snapshot(model), SmallResNet().state_dict()
    given["fc.weight"] = torch.zeros(5, 3)
    given["extra"] = given.pop("fc.bias")
    with pytest.raises(UsageError) as caught:
        bayesify.load_weights(model, given)
    for words in ("missing ['fc.bias']", "unexpected ['extra']", "'fc.weight' has shape (5, 3) and should have (5, 4)"):
        assert words in str(caught.value)
    with pytest.raises(UsageError, match="weight_rho"):
        bayesify.load_weights(model, model.state_dict())
    assert snapshot(model)[0] == before[0]


def test_reset_posterior_keeps_each_parameter_s_own_posterior() -> None:
    """Two layers may share a weight and not a bias, or the other way about."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight, model[2].bias = model[0].weight, model[0].bias
    bayesify.convert(model, VARIATIONAL_BIAS, inplace=True)
    objects = {name: id(value) for name, value in model.named_parameters(remove_duplicate=False)}
    start = copy.deepcopy(model.state_dict())
    bayesify.set_posterior_std(model, 0.5)
    bayesify.reset_posterior(model)
    assert {name: id(value) for name, value in model.named_parameters(remove_duplicate=False)} == objects
    assert all(torch.equal(value, start[name]) for name, value in model.state_dict().items())
    assert model[1].weight_rho is model[0].weight_rho
    assert model[1].bias_rho is not model[0].bias_rho
    assert model[2].bias_rho is model[0].bias_rho
    assert model[2].weight_rho is not model[0].weight_rho


def test_reset_parameters_starts_layers_anew() -> None:
    layer = bayesify.convert(nn.Linear(3, 3), {"prior": {"mean": "pretrained"}})
    bayesify.set_posterior_std(layer, 9.0)
    layer.reset_parameters()
    assert torch.equal(layer.weight_prior_mean, layer.weight)  # type: ignore[arg-type]
    assert layer.weight_std.max() < 1  # type: ignore[operator]
