"""`predict` against closed forms, and the same whichever way the passes are made."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import bayesify
from bayesify.errors import NotVariationalError, UsageError
from bayesify.nn.examples_alone import examples_alone
from bayesify.uncertainty.calls import Call
from bayesify.uncertainty.passes import Sampler
from tests.support import METHODS, judge, judge_mean
from tests.uncertainty.linear_models import network


@pytest.fixture(params=METHODS)
def linear(request: pytest.FixtureRequest) -> Any:
    """y = x Wᵀ + b, 40 → 3, each weight of std 0.2."""
    return network(request.param, nn.Linear(40, 3))


def _a_draw_a_pass(sampler: Sampler, call: Call, samples: int) -> int:
    return 1


@pytest.mark.parametrize("rows", [1, 300])
def test_a_linear_gaussian_model(linear: Any, rows: int) -> None:
    """Mean x·w + b and variance 0.04·|x|², in one pass (1 row) or many (300); an interval that holds what it says."""
    x, count = torch.randn(rows, 40), 4000
    found = bayesify.predict(linear, x, samples=count, task="regression", noise=0.5, seed=0, keep=True)
    with torch.no_grad(), bayesify.posterior_mean(linear):
        mean = linear(x)
    variance = (0.04 * x.square().sum(1, keepdim=True)).expand_as(mean)
    # 4 folded draws share one |ΔW|, which correlates their squares by 1/40 or so
    judge("mean", found.mean - mean, (variance / count).sqrt())
    judge("variance", found.epistemic - variance, variance * math.sqrt(2 * 1.1 / count))
    assert torch.equal(found.aleatoric, torch.full_like(mean, 0.25))
    assert torch.equal(found.total, found.aleatoric + found.epistemic)
    exact = torch.distributions.Normal(mean, (variance + 0.25).sqrt())
    low, high = found.interval(0.9)
    # d(cdf)/d(quantile) · its standard error, which is below that of an empirical quantile
    judge("coverage", exact.cdf(high) - exact.cdf(low) - 0.9, torch.full_like(mean, math.sqrt(0.09 * 1.1 / count)))
    judge("quantile", exact.cdf(found.quantile(0.25)) - 0.25, torch.full_like(mean, math.sqrt(0.1875 * 1.1 / count)))


@pytest.mark.parametrize("task", ["classification", "regression", None])
def test_streamed_sums_are_those_of_a_loop(linear: Any, task: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sampler, "_folded", _a_draw_a_pass)
    x, noise = torch.randn(300, 40), 0.3 if task == "regression" else None
    found = bayesify.predict(linear, x, samples=8, task=task, noise=noise, seed=5)
    torch.manual_seed(5)
    with torch.no_grad(), examples_alone():
        draws = torch.stack([linear(x) for _ in range(8)])
    assert torch.equal(found.total, found.aleatoric + found.epistemic)
    if task == "classification":
        probabilities = draws.softmax(-1)
        torch.testing.assert_close(found.mean, probabilities.mean(0))
        entropy = torch.special.entr(probabilities).sum(-1).mean(0)
        torch.testing.assert_close(found.aleatoric, entropy)
        torch.testing.assert_close(found.total, torch.special.entr(probabilities.mean(0)).sum(-1))
        return
    torch.testing.assert_close(found.mean, draws.mean(0))
    torch.testing.assert_close(found.epistemic, draws.var(0), rtol=1e-4, atol=1e-6)
    assert torch.allclose(found.aleatoric, torch.tensor((noise or 0.0) ** 2))


def test_a_loader_one_batch_and_chunks_agree(linear: Any) -> None:
    """Exactly where there is no noise, and in law where there is."""
    x = torch.randn(23, 40)
    loader = DataLoader(TensorDataset(x, torch.arange(23)), batch_size=5)
    ways = [(x, None), (loader, None), (x, 1), (x, 4), (x, 23), (x, 99), (loader, 2)]
    with bayesify.posterior_mean(linear):
        found = [bayesify.predict(linear, given, samples=2, chunk=chunk) for given, chunk in ways]
    for each in found[1:]:
        torch.testing.assert_close(each.mean, found[0].mean)
        assert each.total.abs().max() < 1e-10
    noisy = [bayesify.predict(linear, given, samples=100, chunk=chunk, task="classification") for given, chunk in ways]
    for draw in noisy[1:]:
        judge("mean", draw.mean - noisy[0].mean, ((draw.std**2 + noisy[0].std ** 2) / 100).sqrt())
        assert (draw.epistemic.mean() / noisy[0].epistemic.mean() - 1).abs() < 0.4


def test_kept_samples_of_a_loader(linear: Any) -> None:
    x = torch.randn(7, 40)
    found = bayesify.predict(linear, DataLoader(x, batch_size=3), samples=6, keep=True, seed=1)
    assert found.samples.shape == (6, 7, 3)
    torch.testing.assert_close(found.samples.mean(0), found.mean)
    torch.testing.assert_close(found.samples.var(0), found.total, rtol=1e-4, atol=1e-6)


class Heteroscedastic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(40, 2)

    def forward(self, x: Tensor, form: str = "dict") -> Any:
        mean, log_variance = self.layer(x).chunk(2, -1)
        forms = {
            "dict": {"mean": mean, "log_var": log_variance},
            "tuple": (mean, log_variance),
            "tensor": torch.cat([mean, log_variance], -1),
        }
        return forms[form]


@pytest.mark.parametrize(("form", "noise", "output"), [
    ("dict", "log_var", None), ("dict", "log_var", "mean"), ("tuple", "1", None), ("tuple", "1", 0),
    ("tensor", "halves", None),
])  # fmt: skip
def test_a_noise_that_the_model_predicts(
    form: str, noise: str, output: Any, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    monkeypatch.setattr(Sampler, "_folded", _a_draw_a_pass)
    model: Any = bayesify.convert(Heteroscedastic(), "flipout")
    bayesify.set_posterior_std(model, 0.05)
    x = torch.randn(300, 40)
    found = bayesify.predict(
        model, {"x": x, "form": form}, samples=50, task="regression", noise=noise, output=output, seed=3
    )
    torch.manual_seed(3)
    with torch.no_grad(), examples_alone():
        draws = torch.stack([model(x, "tensor") for _ in range(50)])
    assert found.mean.shape == (300, 1)
    torch.testing.assert_close(found.mean, draws.mean(0)[:, :1])
    torch.testing.assert_close(found.aleatoric, draws[..., 1:].exp().mean(0))
    torch.testing.assert_close(found.epistemic, draws.var(0)[:, :1], rtol=1e-4, atol=1e-6)
    assert torch.equal(found.total, found.aleatoric + found.epistemic)


def test_two_calls_differ_and_a_seed_repeats(linear: Any) -> None:
    x = torch.randn(70, 40)
    assert not torch.equal(bayesify.predict(linear, x).mean, bayesify.predict(linear, x).mean)
    before = torch.get_rng_state()
    first, second = (bayesify.predict(linear, x, seed=9) for _ in range(2))
    assert torch.equal(first.mean, second.mean)
    assert torch.equal(torch.get_rng_state(), before)


def test_draws_are_even_in_law_of_a_mean(linear: Any) -> None:
    """The mean over predictions is unbiased."""
    x = torch.randn(1, 40)
    found = torch.stack([bayesify.predict(linear, x, samples=2).mean[0] for _ in range(400)]).double()
    with torch.no_grad(), bayesify.posterior_mean(linear):
        judge_mean("mean", found, linear(x)[0].double())


def test_wrong_arguments_say_what_is_wrong(linear: Any) -> None:
    x = torch.randn(3, 40)
    with pytest.raises(NotVariationalError):
        bayesify.predict(nn.Linear(40, 3), x)
    for message, arguments in {
        "samples=1": {"samples": 1},
        "Did you mean 'regression'": {"task": "regresion"},
        "needs its observation noise": {"task": "regression"},
        "noise= is the observation noise of": {"noise": 0.1},
        "not negative": {"task": "regression", "noise": -1.0},
        "does not broadcast": {"task": "regression", "noise": torch.ones(7)},
        "chunk=0": {"chunk": 0},
        "no part 'logits'": {"output": "logits"},
        "no dim=5": {"task": "classification", "dim": 5},
        "even size along dim=-1": {"task": "regression", "noise": "halves"},
    }.items():
        with pytest.raises(UsageError, match=message):
            bayesify.predict(linear, x, **arguments)
    with pytest.raises(UsageError, match="no batch"):
        bayesify.predict(linear, iter([]))
