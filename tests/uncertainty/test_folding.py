"""Draws folded into the batch: only where examples are independent, with the law that a loop of draws has."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bayesify
from bayesify.errors import UsageError
from bayesify.uncertainty import passes, trials
from bayesify.uncertainty.calls import Call
from tests.support import METHODS, judge, judge_mean
from tests.uncertainty.linear_models import network


@pytest.mark.parametrize("method", METHODS)
def test_loop_and_fold_have_one_law(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Means, variances, and the variances of both over predictions; 400 inputs, so that a shared |ΔW| is no matter."""
    model = network(method, nn.Linear(400, 30), nn.Tanh(), nn.Linear(30, 4))
    x = torch.randn(2, 400) / 20

    def predictions(folded: int, count: int = 500) -> tuple[Tensor, Tensor]:
        monkeypatch.setattr(trials, "MOST_FOLDED", folded)
        found = [bayesify.predict(model, x, samples=8) for _ in range(count)]
        return torch.stack([each.mean for each in found]).double(), torch.stack([each.total for each in found]).double()

    for name, loop, fold in zip(("mean", "variance"), predictions(1), predictions(4), strict=True):

        def errors(samples: Tensor) -> Tensor:
            return samples.var(0) / len(samples)

        judge(f"mean of the {name}", loop.mean(0) - fold.mean(0), (errors(loop) + errors(fold)).sqrt())
        deviations = [(samples - samples.mean(0)).square() for samples in (loop, fold)]
        spread = [deviation.mean(0) for deviation in deviations]
        error = sum(errors(deviation) for deviation in deviations)
        assert isinstance(error, Tensor)
        judge(f"variance of the {name}", spread[0] - spread[1], error.sqrt())


def test_folding_does_fold(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four draws that share |ΔW|, or any number that share nothing; and of many examples one by one."""
    for layer, method, groups in (
        (nn.Conv1d(20, 3, 1), "flipout", [8, 8, 4]),
        (nn.Linear(20, 3), "flipout", [20]),
        (nn.Conv1d(20, 3, 1), "lrt", [20]),
    ):
        model, rows, ends = network(method, layer), [], [1] * isinstance(layer, nn.Conv1d)
        model[0].register_forward_hook(lambda layer, args, output, rows=rows: rows.append(len(output)))
        bayesify.predict(model, torch.randn(2, 20, *ends), samples=10)
        assert rows[-len(groups) :] == groups
        rows.clear()
        bayesify.predict(model, torch.randn(140, 20, *ends), samples=3)
        assert rows == [140] * 3


@pytest.mark.parametrize("bias", ["deterministic", "variational"])
def test_folded_draws_of_a_linear_are_independent(bias: str) -> None:
    """Of 8 independent normal draws the sample variance has itself the variance 2σ⁴/7; with one |ΔW|, far more."""
    model: Any = bayesify.convert(nn.Sequential(nn.Linear(1, 1)), {"method": "flipout", "bias": bias})
    bayesify.set_posterior_std(model, 0.2)
    x, variance = torch.tensor([[1.5]]), 0.04 * (1.5**2 + (bias == "variational"))
    found = [bayesify.predict(model, x, samples=8, keep=True).samples.double() for _ in range(2000)]
    samples = torch.stack(found)[..., 0, 0]
    judge_mean("mean", samples.flatten(), float((model[0].weight * 1.5 + model[0].bias).detach()))
    of_sample = samples.var(1)
    judge_mean("variance", of_sample, variance)
    judge_mean("variance of the variance", (of_sample - variance).square(), 2 * variance**2 / 7)


def test_a_forward_that_is_no_prediction_has_one_draw_in_all_its_rows() -> None:
    layer = network("flipout", nn.Linear(1, 1))
    y = layer(torch.ones(50, 1)) - layer[0].weight - layer[0].bias
    torch.testing.assert_close(y.abs(), y[:1].abs().expand(50, 1))


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
        assert sampler.foldable(Call((x,), {})) == 1
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
            assert sampler.foldable(Call((x,), {})) > 1


@pytest.mark.parametrize("first", [nn.Linear(4, 8), nn.Conv1d(4, 8, 1)], ids=["linear", "conv"])
@pytest.mark.parametrize("method", METHODS)
def test_draws_that_are_held_for_each_example_stay_with_it(first: nn.Module, method: str) -> None:
    model = bayesify.convert(nn.Sequential(first, nn.Tanh(), nn.Flatten(), nn.Linear(8, 3)), method)
    x = torch.randn(6, 4) if isinstance(first, nn.Linear) else torch.randn(6, 4, 1)
    with bayesify.draw(model, draws=6, seed=1):
        y, prediction = model(x), bayesify.predict(model, x, samples=4, keep=True)
    torch.testing.assert_close(prediction.samples, y.expand(4, -1, -1))
