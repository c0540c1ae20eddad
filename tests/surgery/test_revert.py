"""The inverse of conversion: the original classes again, with the means or with one draw."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import bayesify
from bayesify.errors import (
    NotVariationalError,
    UsageError,
)
from tests.nets import SmallResNet, Tangled, snapshot
from tests.surgery.models import METHODS, VARIATIONAL_BIAS, encoder


@pytest.mark.parametrize("policy", [*METHODS, VARIATIONAL_BIAS, {"posterior": {"parameterization": "multiplicative"}}])
@pytest.mark.parametrize("make", [SmallResNet, Tangled, encoder, lambda: nn.Linear(2, 3)])
def test_revert_is_the_inverse_to_the_last_attribute(make: Any, policy: Any) -> None:
    model = make()
    model.register_forward_hook(lambda *_: None)
    for child in model.children():
        child.register_forward_pre_hook(lambda *_: None)
    before = snapshot(model)
    bayesify.convert(model, policy, inplace=True)
    assert snapshot(model) != before
    assert bayesify.revert(model, inplace=True) is model
    assert snapshot(model) == before


def test_revert_leaves_the_switches_that_the_user_set() -> None:
    model = encoder()
    model.use_nested_tensor = False
    bayesify.revert(bayesify.convert(model, inplace=True), inplace=True)
    assert model.use_nested_tensor is False


def test_revert_to_a_sample_draws_each_weight_once_and_keeps_ties() -> None:
    model = bayesify.convert(Tangled(), VARIATIONAL_BIAS)
    bayesify.set_posterior_std(model, 2.0)
    before = snapshot(model)
    drawn = [bayesify.revert(model, "sample") for _ in range(3)]
    mean = bayesify.revert(model)
    assert snapshot(model)[0] == before[0]
    assert drawn[0].head.weight is drawn[0].emb.weight
    assert drawn[0].twin.weight is drawn[0].a.weight
    for (name, a), b, c in zip(mean.named_parameters(), drawn[0].parameters(), drawn[1].parameters(), strict=True):
        noisy = name.partition(".")[0] in ("a", "twin", "spare", "emb", "attn")
        assert torch.equal(b, c) is not noisy, name
        assert torch.equal(a, b) is not noisy, name
    assert 1.2 < (drawn[0].spare.weight - mean.spare.weight).std() < 2.9


def test_revert_of_a_part_leaves_the_rest() -> None:
    model = bayesify.convert(SmallResNet())
    whole, part = model.kl(), bayesify.kl(model.layer1)  # type: ignore[operator]
    bayesify.revert(model.layer1, inplace=True)
    torch.testing.assert_close(model.kl(), whole - part)  # type: ignore[operator]


@pytest.mark.parametrize(
    "call", ["revert", "reset_posterior", "kl", "param_groups", "set_posterior_std", "load_weights"]
)
def test_a_plain_model_is_refused(call: str) -> None:
    more = {"set_posterior_std": (0.1,), "load_weights": ({},)}.get(call, ())
    with pytest.raises(
        NotVariationalError, match=r"SmallResNet has no variational layer: call bayesify\.convert first"
    ):
        getattr(bayesify, call)(SmallResNet(), *more)
    with pytest.raises(NotVariationalError), bayesify.posterior_mean(SmallResNet()):
        pass


def test_revert_refuses_other_words_and_derived_classes() -> None:
    model = bayesify.convert(SmallResNet())
    with pytest.raises(UsageError, match="Did you mean 'sample'"):
        bayesify.revert(model, "samples")  # type: ignore[arg-type]
    derived = nn.Sequential(nn.Linear(2, 2), type("Mine", (bayesify.nn.FlipoutLinear,), {})(2, 2))
    with pytest.raises(UsageError, match="Mine was derived"):
        bayesify.revert(derived, inplace=True)
