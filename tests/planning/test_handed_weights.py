"""A weight that code hands on to a child, a helper or a list takes its noise along, or the plan notes it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import bayesify
from tests.support import METHODS

from . import handed_weights
from .test_forward_habits import rows


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("model", handed_weights.KINDS, ids=lambda cls: cls.__name__)
def test_a_weight_that_is_handed_on_takes_its_noise_with_it(model: Any, method: str) -> None:
    torch.manual_seed(0)
    plain = model()
    converted = bayesify.convert(plain, method)
    bayesify.set_posterior_std(converted, 0.2)
    x = torch.zeros(1, 4)  # at 0 the encoder has no noise, so that all of it is the decoder's
    with torch.no_grad():
        out = torch.cat([converted(x) for _ in range(600)])
        with bayesify.posterior_mean(converted):
            assert torch.equal(converted(x), plain(x))
    expected = 0.2 * torch.tanh(plain.enc.bias).norm()
    spread = (out - plain(x)).square().mean().sqrt()  # of 2,400 numbers: its own error is 1.4 %
    torch.testing.assert_close(spread, expected, rtol=0.08, atol=0)
    converted(torch.ones(3, 4)).square().sum().backward()
    assert converted.enc.weight_rho.grad.any()


def test_a_weight_that_a_method_of_its_layer_gives_is_seen() -> None:
    assert rows(handed_weights.ByMethod(), "flipout")["0"].reads == ("enc",)


def test_a_weight_that_is_taken_past_autograd_is_noted() -> None:
    class Detached(handed_weights.Tied):
        def decoded(self, h: Tensor) -> Tensor:
            return F.linear(h, self.enc.weight.data.t())

    notes = rows(Detached(), "flipout")["0.enc"].notes
    assert any("takes its weight beside, without noise" in note and "test_handed_weights" in note for note in notes)
