"""Without noise a converted model computes what the original does."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import bayesify
from tests.nets import SmallResNet, image
from tests.surgery.models import KINDS, METHODS, VARIATIONAL_BIAS


@KINDS
@pytest.mark.parametrize("policy", [*METHODS, VARIATIONAL_BIAS])
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_the_mean_is_bit_equal_and_the_rest_is_noise(make: Any, data: Any, policy: Any, mode: str) -> None:
    model, x = getattr(make(), mode)(), data()
    converted = bayesify.convert(model, policy)
    with bayesify.posterior_mean(converted):
        torch.manual_seed(1)
        quiet = converted(x)
    torch.manual_seed(1)
    assert torch.equal(quiet, model(x))
    for ours, theirs in zip(bayesify.revert(converted).buffers(), model.buffers(), strict=True):
        assert torch.equal(ours, theirs)
    torch.manual_seed(1)
    first = converted(x)
    torch.manual_seed(1)
    assert torch.equal(converted(x), first) or mode == "train"
    assert not torch.equal(converted(x), first)


def test_the_mean_nests_and_survives_exceptions() -> None:
    model, x = bayesify.convert(SmallResNet()).eval(), image()
    with bayesify.posterior_mean(model):
        with bayesify.posterior_mean(model.layer1), bayesify.posterior_mean(model):
            inner = model(x)
        assert torch.equal(model(x), inner)
        with pytest.raises(KeyError), bayesify.posterior_mean(model):
            raise KeyError
        assert torch.equal(model(x), inner)
    assert not torch.equal(model(x), model(x))
    with bayesify.posterior_mean(model.layer1):
        assert not torch.equal(model(x), model(x))


def test_gradients_in_the_mean_are_the_plain_model_s() -> None:
    model, x = SmallResNet().eval(), image()
    converted = bayesify.convert(model)
    with bayesify.posterior_mean(converted):
        converted(x).square().sum().backward()
    model(x).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter.grad, converted.get_parameter(name).grad)  # type: ignore[arg-type]
