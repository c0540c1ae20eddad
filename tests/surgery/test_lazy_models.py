"""Models whose layers have not seen data, or are on the meta device."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import nn

import bayesify
from bayesify.errors import (
    UninitializedLayerError,
)
from tests.nets import Tangled, image, tokens
from tests.surgery.models import METHODS, POLICIES


@pytest.mark.parametrize("policy", POLICIES, ids=str)
@pytest.mark.parametrize("way", ["assign", "load_weights"])
def test_converting_on_meta(policy: Any, way: str) -> None:
    trained = Tangled()
    with torch.device("meta"):
        model = Tangled()
    bayesify.convert(model, policy, inplace=True)
    with pytest.raises(UninitializedLayerError, match="'a' is on the meta device"):
        model.kl()  # type: ignore[operator]
    if way == "load_weights":
        bayesify.load_weights(model, trained.state_dict(), assign=True)
    else:
        model.load_state_dict(trained.state_dict(), strict=False, assign=True)
        model.head.weight, model.twin.weight = model.emb.weight, model.a.weight
        bayesify.reset_posterior(model)
    expected = bayesify.convert(trained, policy)
    assert model.head.weight is model.emb.weight
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in expected.named_parameters()]
    for name, value in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    torch.testing.assert_close(model.kl(), expected.kl(), rtol=0, atol=0)  # type: ignore[operator]
    x = tokens()
    with bayesify.posterior_mean(model):
        assert torch.equal(model(x), trained(x))


@pytest.mark.parametrize("method", METHODS)
def test_a_lazily_converted_model_is_the_one_that_is_converted_afterwards(method: str) -> None:
    model = nn.Sequential(nn.LazyConv2d(3, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2), nn.Linear(2, 2))
    policy = {"method": method, "bias": "variational"}
    early = bayesify.convert(model, policy)
    with pytest.raises(UninitializedLayerError, match="'0' has not seen data"):
        early.kl()  # type: ignore[operator]
    early = pickle.loads(pickle.dumps(copy.deepcopy(early)))
    early(image())
    late = bayesify.convert(bayesify.revert(early), policy)
    assert [type(layer) for layer in early] == [type(layer) for layer in late]
    assert [layer._settings for _, layer in bayesify.variational_layers(early)] == [
        layer._settings for _, layer in bayesify.variational_layers(late)
    ]
    assert early.state_dict().keys() == late.state_dict().keys()
    assert all(torch.equal(value, late.state_dict()[name]) for name, value in early.state_dict().items())
    assert [type(layer) for layer in bayesify.revert(bayesify.convert(model))] == [type(layer) for layer in model]


def test_a_plain_checkpoint_loads_into_a_lazy_model() -> None:
    trained = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    model = bayesify.convert(nn.Sequential(nn.LazyLinear(3), nn.LazyLinear(2)))
    bayesify.load_weights(model, trained.state_dict())
    model(torch.randn(2, 4))
    expected = bayesify.convert(trained).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


def test_a_lazy_model_has_nothing_to_draw() -> None:
    model = bayesify.convert(nn.Sequential(nn.LazyLinear(2)))
    with pytest.raises(UninitializedLayerError, match="'0' has not seen data yet, so that there is nothing to draw"):
        bayesify.revert(model, "sample", inplace=True)
    assert isinstance(model[0], bayesify.nn.LazyFlipoutLinear)
