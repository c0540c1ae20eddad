"""A prediction's own numbers against torch.distributions and closed forms."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils import _pytree as pytree

from bayesify import Prediction
from bayesify.errors import UsageError
from bayesify.uncertainty.measures import Classes, Spread
from bayesify.uncertainty.mixtures import mixture_quantile
from bayesify.uncertainty.streaming import LogMean, Moments


def made(measure: Any, *draws: Any, task: Any = None, **others: Any) -> Prediction:
    """The prediction of draws that were added one group after the other."""
    for group in draws:
        measure.add(*(group if isinstance(group, tuple) else (group,)))
    return Prediction(**measure.result(), task=task, **others)


@given(sizes=st.lists(st.integers(1, 5), min_size=2, max_size=6), seed=st.integers(0, 2**31))
def test_moments_are_those_of_all_draws(sizes: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    draws = 100 + torch.randn(sum(sizes), 3, 2, generator=generator)
    moments, logs = Moments(), LogMean()
    for group in draws.split(sizes):
        moments.add(group)
        logs.add(group - 2000)
    wide = draws.double()
    torch.testing.assert_close(moments.mean.double(), wide.mean(0), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(moments.variance.double(), wide.var(0), rtol=2e-4, atol=1e-6)
    expected = torch.logsumexp(wide - 2000, 0) - torch.tensor(len(draws)).double().log()
    torch.testing.assert_close(logs.value.double(), expected, rtol=1e-6, atol=1e-6)


def test_moments_of_half_precision_are_summed_in_float32() -> None:
    moments = Moments()
    for _ in range(4096):
        moments.add(torch.ones(1, 1, dtype=torch.bfloat16) * 1.0078125)
    assert moments.mean.item() == 1.0078125
    assert moments.variance.item() == 0


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_classes_against_torch_distributions(dim: int) -> None:
    logits = 3 * torch.randn(6, 4, 5, 3)
    found = made(Classes(dim, keep=True), logits[:2], logits[2:], task="classification", dim=dim)
    last = logits.double().movedim(dim % 3 + 1, -1)
    each = torch.distributions.Categorical(logits=last)
    mean = each.probs.mean(0)
    entropy, expected = torch.distributions.Categorical(mean).entropy(), each.entropy().mean(0)

    def close(tensor: Tensor, to: Tensor) -> None:
        torch.testing.assert_close(tensor.double(), to, rtol=1e-5, atol=1e-6)

    close(found.total, entropy)
    close(found.aleatoric, expected)
    close(found.epistemic, entropy - expected)
    close(found.mean, mean.movedim(-1, dim % 3))
    close(found.log_mean, mean.log().movedim(-1, dim % 3))
    close(found.std, each.probs.std(0).movedim(-1, dim % 3))
    close(found.confidence, mean.amax(-1))
    assert torch.equal(found.label, mean.argmax(-1))
    assert torch.equal(found.total, found.aleatoric + found.epistemic)
    close(found.quantile(0.25), each.probs.quantile(0.25, dim=0).movedim(-1, dim % 3))


def test_a_probability_that_is_rounded_to_zero_has_its_log() -> None:
    found = made(Classes(-1, keep=False), torch.tensor([[0.0, -200.0]]), torch.tensor([[0.0, -202.0]]))
    assert found.mean[1] == 0
    expected = torch.tensor([-200.0, -202.0]).double().logsumexp(0) - torch.tensor(2.0).log()
    torch.testing.assert_close(found.log_mean[1].double(), expected)


@given(seed=st.integers(0, 2**31), level=st.floats(0.05, 0.95))
def test_sets_are_the_smallest_that_reach_the_level(seed: int, level: float) -> None:
    logits = torch.randn(3, 2, 6, generator=torch.Generator().manual_seed(seed)).double()
    found = made(Classes(-1, keep=False), logits, task="classification")
    for mean, chosen in zip(found.mean, found.set(level), strict=True):
        assert mean[chosen].sum() >= level - 1e-9
        assert mean[chosen].sum() - mean[chosen].min() < level
        assert mean[chosen].min() >= mean[~chosen].max() if (~chosen).any() else True


def test_variance_by_the_law_of_total_variance() -> None:
    outputs, log_variances = torch.randn(50, 4), torch.randn(50, 4)
    found = made(Spread(keep=True), (outputs[:7], log_variances[:7]), (outputs[7:], log_variances[7:]))
    torch.testing.assert_close(found.aleatoric, log_variances.exp().mean(0))
    torch.testing.assert_close(found.epistemic, outputs.var(0))
    assert torch.equal(found.total, found.aleatoric + found.epistemic)
    assert torch.equal(found.std, found.total.sqrt())
    assert torch.equal(found.noise_samples, log_variances.exp())


def test_quantiles_of_a_normal_and_of_a_mixture() -> None:
    normal = torch.distributions.Normal(torch.tensor([1.0, -2.0]).double(), torch.tensor([0.5, 3.0]).double())
    alone = mixture_quantile(normal.mean.expand(3, 2), normal.variance, 0.9)
    torch.testing.assert_close(alone, normal.icdf(torch.tensor(0.9, dtype=torch.float64)))
    means, variances = torch.randn(7, 5).double(), torch.rand(7, 5).double() + 0.1
    found = mixture_quantile(means, variances, 0.3)
    reached = torch.distributions.Normal(means, variances.sqrt()).cdf(found).mean(0)
    torch.testing.assert_close(reached, torch.full((5,), 0.3).double())


def test_an_interval_without_samples_is_that_of_the_normal() -> None:
    found = made(Spread(keep=False), torch.randn(20, 4).double())
    low, high = found.interval(0.9)
    normal = torch.distributions.Normal(found.mean, found.std)
    torch.testing.assert_close(normal.cdf(high) - normal.cdf(low), torch.full((4,), 0.9).double())


def test_kept_regression_quantiles_hold_the_noise_of_each_draw() -> None:
    outputs, log_variances = torch.randn(9, 4).double(), torch.randn(9, 4).double()
    found = made(Spread(keep=True), (outputs, log_variances), task="regression")
    low, high = found.interval(0.8)
    normals = torch.distributions.Normal(outputs, (log_variances / 2).exp())
    torch.testing.assert_close((normals.cdf(high) - normals.cdf(low)).mean(0), torch.full((4,), 0.8).double())


def test_what_a_task_does_not_have_is_refused() -> None:
    spread = made(Spread(keep=False), torch.randn(3, 2))
    with pytest.raises(UsageError, match="`label` is for task='classification'"):
        _ = spread.label
    with pytest.raises(UsageError, match="`set` is for"):
        spread.set()
    with pytest.raises(UsageError, match=r"level=1\.5 does not lie between 0 and 1"):
        spread.interval(1.5)
    classes = made(Classes(-1, keep=False), torch.randn(3, 2), task="classification")
    with pytest.raises(UsageError, match="keep=True"):
        classes.quantile(0.5)
    with pytest.raises(UsageError, match="no dim=2"):
        Classes(2, keep=False).add(torch.randn(1, 4, 5))
    with pytest.raises(UsageError, match="one class along dim=-1"):
        Classes(-1, keep=False).add(torch.randn(1, 4, 1))


def test_it_is_a_pytree_and_plain_data() -> None:
    found = made(Classes(1, keep=False), torch.randn(3, 2, 5), task="classification", dim=1)
    leaves, structure = pytree.tree_flatten(found)
    again = pytree.tree_unflatten(leaves, structure)
    assert (again.task, again.dim) == ("classification", 1)
    assert torch.equal(again.total, found.total)
    halved = pytree.tree_map_only(Tensor, lambda tensor: tensor[..., :2], found)
    assert isinstance(halved, Prediction)
    assert halved.label.shape == (2,)
    for other in (pickle.loads(pickle.dumps(found)), copy.deepcopy(found)):
        assert torch.equal(other.mean, found.mean)
