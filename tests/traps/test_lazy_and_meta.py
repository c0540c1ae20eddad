"""Traps: layers whose weights have no numbers yet."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bayesify
from bayesify.errors import StalePosteriorError, UninitializedLayerError
from bayesify.nn.registry import plain_classes
from tests.nets import SmallResNet
from tests.traps.common import METHODS, PRETRAINED, differs

LAZY: list[Any] = [cls for cls in plain_classes() if cls.__name__.startswith("Lazy")]


def lazy_case(cls: Any) -> tuple[nn.Module, Tensor]:
    if cls is nn.LazyLinear:
        return cls(3), torch.randn(2, 4)
    return cls(3, 2), torch.randn(2, 4, *[5] * int(cls.__name__[-2]))


@METHODS
@pytest.mark.parametrize("cls", LAZY, ids=lambda cls: cls.__name__)
def test_13_lazy_layers_stay_variational(cls: Any, method: str) -> None:
    layer, x = lazy_case(cls)
    layer = copy.deepcopy(bayesify.convert(layer, method))
    assert differs(layer, x)
    name = cls.cls_to_become.__name__
    assert type(layer).__name__ == ("Flipout" if method == "flipout" else "LRT") + name
    assert layer.weight_rho.shape == layer.weight.shape  # type: ignore[union-attr]
    assert not layer._forward_pre_hooks


@pytest.mark.parametrize("cls", LAZY, ids=lambda cls: cls.__name__)
def test_14_a_loaded_weight_survives_a_lazy_first_batch(cls: Any) -> None:
    trained, x = lazy_case(cls)
    trained(x)
    layer, _ = lazy_case(cls)
    layer = bayesify.convert(layer, PRETRAINED)
    layer.load_state_dict(trained.state_dict(), strict=False)
    with bayesify.posterior_mean(layer):
        assert torch.equal(layer(x), trained(x))
    assert torch.equal(layer.weight, trained.weight)  # type: ignore[arg-type]
    assert torch.equal(layer.weight_prior_mean, trained.weight)  # type: ignore[arg-type]
    bayesify.set_posterior_std(layer, 0.5)
    again = bayesify.convert(lazy_case(cls)[0], PRETRAINED)
    again.load_state_dict(layer.state_dict())
    again(x)
    assert all(torch.equal(value, layer.state_dict()[name]) for name, value in again.state_dict().items())


def test_15_kl_before_the_first_batch() -> None:
    model = bayesify.convert(nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.LazyLinear(3))))
    for call in (model.kl, model.kl.by_layer):  # type: ignore[union-attr]
        with pytest.raises(UninitializedLayerError, match=r"'1\.0' has not seen data"):
            call()  # type: ignore[operator]
    model(torch.randn(2, 4))
    assert model.kl() > 0  # type: ignore[operator]


def test_20_meta() -> None:
    with torch.device("meta"):
        model = SmallResNet()
    bayesify.convert(model, PRETRAINED, inplace=True).to_empty(device="cpu")
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    for _, layer in bayesify.variational_layers(model):
        assert layer.weight_std.isfinite().all()
        assert layer.weight_std.max() < 1
        assert torch.equal(layer.weight_prior_mean, layer.weight)  # type: ignore[arg-type]
    assert model.kl().isfinite()  # type: ignore[operator]


def test_memory_without_values_is_no_posterior() -> None:
    with torch.device("meta"):
        plain = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    values = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)).state_dict()
    expected = bayesify.convert(loaded(values), PRETRAINED)
    model: Any = bayesify.convert(plain, PRETRAINED).to_empty(device="cpu")
    model.load_state_dict(values, strict=False)
    for call in (model.kl, lambda: model(torch.ones(2, 4)), lambda: model[0].weight_std):
        with pytest.raises(StalePosteriorError, match="came off the meta device without values"):
            call()
    with bayesify.posterior_mean(model):
        assert torch.equal(model(torch.ones(2, 4)), loaded(values)(torch.ones(2, 4)))
    for fill in (bayesify.reset_posterior, lambda model: bayesify.load_weights(model, values)):
        filled = copy.deepcopy(model)
        fill(filled)
        torch.testing.assert_close(filled.kl(), expected.kl())
    model.load_state_dict(expected.state_dict())
    torch.testing.assert_close(model.kl(), expected.kl())


def loaded(values: Any) -> nn.Module:
    plain = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    plain.load_state_dict(values)
    return plain
