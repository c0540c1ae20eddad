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
from bayesify.uncertainty import passes
from bayesify.uncertainty.calls import Call
from tests.support import METHODS, judge, judge_mean


def network(method: str, *layers: nn.Module, std: float = 0.2) -> Any:
    """A converted network whose noise can be measured."""
    model = bayesify.convert(nn.Sequential(*layers), method)
    bayesify.set_posterior_std(model, std)
    return model.eval()


@pytest.fixture(params=METHODS)
def linear(request: pytest.FixtureRequest) -> Any:
    """y = x Wᵀ + b, 40 → 3, each weight of std 0.2."""
    return network(request.param, nn.Linear(40, 3))


@pytest.mark.parametrize("rows", [1, 70])
def test_a_linear_gaussian_model(linear: Any, rows: int) -> None:
    """Mean x·w + b and variance 0.04·|x|², by loop (70 rows) and fold (1); an interval that holds what it says."""
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
def test_streamed_sums_are_those_of_a_loop(linear: Any, task: Any) -> None:
    x, noise = torch.randn(70, 40), 0.3 if task == "regression" else None
    found = bayesify.predict(linear, x, samples=8, task=task, noise=noise, seed=5)
    torch.manual_seed(5)
    with torch.no_grad():
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


@pytest.mark.parametrize("method", METHODS)
def test_loop_and_fold_have_one_law(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Means, variances, and the variances of both over predictions; 400 inputs, so that a shared |ΔW| is no matter."""
    model = network(method, nn.Linear(400, 30), nn.Tanh(), nn.Linear(30, 4))
    x = torch.randn(2, 400) / 20

    def predictions(folded: int, count: int = 500) -> tuple[Tensor, Tensor]:
        monkeypatch.setattr(passes, "MOST_FOLDED", folded)
        found = [bayesify.predict(model, x, samples=8) for _ in range(count)]
        return torch.stack([each.mean for each in found]).double(), torch.stack([each.total for each in found]).double()

    for name, loop, fold in zip(("mean", "variance"), predictions(1), predictions(4), strict=True):

        def errors(samples: Tensor) -> Tensor:
            return samples.var(0) / len(samples)

        judge(f"mean of the {name}", loop.mean(0) - fold.mean(0), (errors(loop) + errors(fold)).sqrt())
        deviations = [(samples - samples.mean(0)).square() for samples in (loop, fold)]
        spread = [each.mean(0) for each in deviations]
        error = sum(errors(each) for each in deviations)
        assert isinstance(error, Tensor)
        judge(f"variance of the {name}", spread[0] - spread[1], error.sqrt())


def test_folding_does_fold(monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = network("flipout", nn.Linear(20, 3)), []
    model[0].register_forward_hook(lambda layer, args, output: rows.append(len(output)))
    bayesify.predict(model, torch.randn(2, 20), samples=10)
    assert [count for count in rows if count > 3] == [8, 8, 4]
    rows.clear()
    bayesify.predict(model, torch.randn(40, 20), samples=10)
    assert rows == [40] * 10


class TakesTwo(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(20, 3)

    def forward(self, x: Tensor, most: int = 3) -> Tensor:
        if len(x) > most:
            raise RuntimeError("too many rows")
        y: Tensor = self.layer(x)
        return y


def test_what_refuses_more_rows_is_not_folded() -> None:
    model: Any = bayesify.convert(TakesTwo(), "flipout")
    assert bayesify.predict(model, torch.randn(2, 20), samples=5, keep=True).samples.shape == (5, 2, 3)
    with pytest.raises(RuntimeError, match="too many rows"):
        bayesify.predict(model, torch.randn(4, 20))


def test_folded_draws_go_to_their_examples() -> None:
    """Two inputs far apart, of which one has no spread: nothing of one is taken for the other."""
    model = network("flipout", nn.Linear(20, 3))
    x = torch.stack([torch.zeros(20), torch.ones(20)])
    found = bayesify.predict(model, x, samples=8, keep=True)
    assert torch.equal(found.samples[:, 0], model[0].bias.detach().expand(8, 3))
    assert (found.epistemic[1] > 0.01).all()


class MixesExamples(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(20, 20)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x)
        return y - y.mean(0)


class TimeFirst(nn.Module):
    """Examples in dimension 0 of input and output, and in 1 between: without example inputs conversion cannot know."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(20, 20)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x.transpose(0, 1)).transpose(0, 1)
        return y


class Attends(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.MultiheadAttention(20, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x, x, x)[0]
        return y


@pytest.mark.parametrize(
    ("plain", "x"),
    [
        (MixesExamples(), torch.randn(2, 20)),
        (TimeFirst(), torch.randn(2, 3, 20)),
        (Attends(), torch.randn(5, 20)),  # unbatched: dimension 0 is time
        (nn.Sequential(nn.Conv2d(3, 4, 3)), torch.randn(3, 8, 8)),
        (nn.LSTM(20, 6), torch.randn(4, 2, 20)),
        (nn.RNN(20, 6, batch_first=True), torch.randn(4, 20)),
    ],
)
def test_what_is_not_independent_along_dimension_0_is_not_folded(plain: nn.Module, x: Tensor) -> None:
    model: Any = bayesify.convert(plain, "flipout")
    sampler = passes.Sampler(model.eval(), lambda call: _first(model(*call.args)))
    with torch.no_grad():
        assert not sampler.foldable(Call((x,), {}))
        apart = sampler.examples_apart(Call((x,), {}))
    assert apart == isinstance(plain, TimeFirst)
    if apart:
        return
    with pytest.raises(UsageError, match="chunk=1 splits along dimension 0"):
        bayesify.predict(model, x, samples=2, chunk=1)


def _first(output: Any) -> list[Any]:
    return [output[0] if isinstance(output, tuple) else output]


@pytest.mark.parametrize("method", METHODS)
def test_what_is_independent_along_dimension_0_is_folded(method: str) -> None:
    cases: list[tuple[nn.Module, Tensor]] = [
        (Attends(), torch.randn(2, 5, 20)),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), torch.randn(1, 3, 8, 8)),
        (nn.LSTM(20, 6, batch_first=True), torch.randn(1, 4, 20)),
        (nn.Sequential(nn.Embedding(50, 8), nn.Linear(8, 50)), torch.randint(50, (1, 7))),
    ]
    for plain, x in cases:
        model: Any = bayesify.convert(plain.eval(), method)
        sampler = passes.Sampler(model, lambda call, model=model: _first(model(*call.args)))
        with torch.no_grad():
            assert sampler.foldable(Call((x,), {}))


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
    for each in noisy[1:]:
        judge("mean", each.mean - noisy[0].mean, ((each.std**2 + noisy[0].std ** 2) / 100).sqrt())
        assert (each.epistemic.mean() / noisy[0].epistemic.mean() - 1).abs() < 0.4


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
def test_a_noise_that_the_model_predicts(form: str, noise: str, output: Any) -> None:
    model: Any = bayesify.convert(Heteroscedastic(), "flipout")
    bayesify.set_posterior_std(model, 0.05)
    x = torch.randn(70, 40)
    found = bayesify.predict(
        model, {"x": x, "form": form}, samples=50, task="regression", noise=noise, output=output, seed=3
    )
    torch.manual_seed(3)
    with torch.no_grad():
        draws = torch.stack([model(x, "tensor") for _ in range(50)])
    assert found.mean.shape == (70, 1)
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
