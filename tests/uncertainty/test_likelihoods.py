"""Scores of predictions against what they are by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bayesify.uncertainty.conformal import Conformal
from bayesify.uncertainty.likelihoods import (
    calibration_error,
    class_log_likelihoods,
    golden_minimum,
    mixture_nll,
    normal_log_likelihoods,
)


def test_mixtures_of_classes_and_normals() -> None:
    logits, labels = torch.randn(5, 7, 3), torch.randint(3, (7,))
    by_hand = -(logits / 2).softmax(-1).mean(0)[torch.arange(7), labels].log()
    torch.testing.assert_close(mixture_nll(class_log_likelihoods(logits, labels, 2.0)), by_hand)

    means, variances, target = torch.randn(5, 7), torch.rand(5, 7) + 0.1, torch.randn(7)
    by_hand = -torch.distributions.Normal(means, variances.sqrt()).log_prob(target).exp().mean(0).log()
    torch.testing.assert_close(mixture_nll(normal_log_likelihoods(means, variances, target)), by_hand)


def test_the_calibration_error_of_two_bins() -> None:
    """Confidences 0.6 and 0.9, half and all of them right: (|0.6 - 0.5| + |0.9 - 1|)/2."""
    probabilities = torch.tensor([[0.6, 0.4], [0.6, 0.4], [0.9, 0.1], [0.9, 0.1]])
    assert calibration_error(probabilities, torch.tensor([0, 1, 0, 0]), bins=2) == pytest.approx(0.1)


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=4))
def test_a_valley_is_found_elementwise(places: list[float]) -> None:
    wanted = torch.tensor(places, dtype=torch.float64)
    found = golden_minimum(lambda x: (x - wanted).abs(), torch.full_like(wanted, -6), torch.full_like(wanted, 7))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)


@given(st.integers(1, 5000), st.floats(0.01, 0.99))
def test_the_conformal_rank_is_that_of_one_more_example(count: int, level: float) -> None:
    """Scores 1..n: the bound is the rank, rounded up only where not all ranks are kept."""
    bound, rank = Conformal.of(torch.arange(1.0, count + 1)).bound(level), math.ceil((count + 1) * level - 1e-9)
    if rank > count:
        assert bound == math.inf
    else:
        assert rank <= bound <= rank + count / 2000
