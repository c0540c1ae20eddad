"""`calibrate` finds the factor, temperature and noise that made the data; what it fitted stays with the model."""

from __future__ import annotations

import copy
import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import bayesify
from bayesify.errors import NotVariationalError, UsageError
from bayesify.uncertainty.calibrate import posterior_stds
from bayesify.uncertainty.calibration import stored_calibration
from tests.support import METHODS

STD = 0.2
Z = 5.5  # two-sided false alarm: 4e-8


def linear(method: str, inputs: int, outputs: int, std: float = STD) -> Any:
    """One converted Linear whose every weight has this std."""
    model = bayesify.convert(nn.Sequential(nn.Linear(inputs, outputs)), method)
    bayesify.set_posterior_std(model, std)
    return model.eval()


def loader(*tensors: Tensor) -> Any:
    return DataLoader(TensorDataset(*tensors), batch_size=500)


def mean_of(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad(), bayesify.posterior_mean(model):
        output: Tensor = model(x)
    return output


def classes(logits: Tensor) -> Tensor:
    return torch.distributions.Categorical(logits=logits).sample()  # type: ignore[no-any-return]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_the_factor_and_the_noise_that_made_the_data(method: str, factor: float) -> None:
    """y = x·(w + factor·std·eps) + noise: the inputs' lengths tell the two apart."""
    model, count = linear(method, 5, 2), 4000
    x = torch.randn(count, 5) * torch.linspace(0.1, 2, count).unsqueeze(1)
    noise = torch.tensor([1.0, 0.8]) * factor
    y = mean_of(model, x) + factor * STD * x.norm(dim=1, keepdim=True) * torch.randn(count, 2)
    y += noise * torch.randn(count, 2)

    found = bayesify.calibrate(model, loader(x, y), task="regression", samples=64)

    assert found.std_factor == factor
    torch.testing.assert_close(model[0].weight_std, torch.full((2, 5), factor * STD))
    # the mixture of 64 draws has tails a little thinner than a normal's, which the noise makes up for
    torch.testing.assert_close(torch.tensor(found.noise), noise, rtol=0.1, atol=0)


@pytest.mark.parametrize("true", [0.4, 3.0])
def test_the_temperature_that_made_the_labels(true: float) -> None:
    """Its Fisher information is the variance of logits/T under the labels' law, summed over examples."""
    model, x = linear("flipout", 4, 3, std=1e-6), torch.randn(4000, 4)
    model[0].weight.data.mul_(5)
    logits = mean_of(model, x) / true
    found = bayesify.calibrate(model, loader(x, classes(logits)), task="classification", samples=2)

    probabilities = logits.softmax(-1)
    variance = (probabilities * logits.square()).sum(-1) - (probabilities * logits).sum(-1).square()
    assert abs(math.log(found.temperature / true)) * variance.sum().sqrt() < Z
    predicted = bayesify.predict(model, x, samples=2, task="classification").mean
    torch.testing.assert_close(predicted, (logits * true / found.temperature).softmax(-1), rtol=1e-3, atol=1e-4)


def test_the_factor_of_a_predicted_noise() -> None:
    """The model says std 1 and the noise has std 3: a variance factor of 9, with relative error sqrt(2/n)."""
    model, count = linear("lrt", 3, 2, std=1e-6), 5000
    model[0].weight.data[1] = 0
    model[0].bias.data[1] = 0
    x = torch.randn(count, 3)
    mean = mean_of(model, x)[:, :1]
    y = mean + 3 * torch.randn(count, 1)

    found = bayesify.calibrate(model, loader(x, y), task="regression", samples=2)

    assert found.noise == "halves"
    assert abs(found.noise_factor / 9 - 1) < Z * math.sqrt(2 / count)
    predicted = bayesify.predict(model, x, task="regression", samples=2)
    torch.testing.assert_close(predicted.std, torch.full_like(y, math.sqrt(found.noise_factor)), rtol=1e-3, atol=0)


def test_sets_and_intervals_cover_new_data_whatever_the_model_is() -> None:
    """Both the n calibration scores and the n new ones vary: a coverage of 0.9 has the variance 0.09·(1/n + 1/n)."""
    count = 1500
    margin = Z * math.sqrt(0.09 * 2 / count)
    model, x = linear("flipout", 4, 5), torch.randn(2 * count, 4)
    labels = classes(2 * torch.randn(4, 5).T.mm(x.T).T)  # nothing that the model knows of
    bayesify.calibrate(model, loader(x[:count], labels[:count]), task="classification")
    members = bayesify.predict(model, x[count:], task="classification").set(0.9)
    covered = members.gather(1, labels[count:, None]).float().mean()
    assert members.any(1).all()
    assert covered > 0.9 - margin

    model = linear("flipout", 4, 1)
    y = torch.distributions.StudentT(2.0).sample((2 * count, 1))
    bayesify.calibrate(model, loader(x[:count], y[:count]), task="regression")
    low, high = bayesify.predict(model, x[count:], task="regression").interval(0.9)
    assert abs(((low <= y[count:]) & (y[count:] <= high)).float().mean() - 0.9) < margin


def test_too_few_data_for_a_level_give_all_classes_and_the_whole_line() -> None:
    model, x = linear("flipout", 4, 3), torch.randn(8, 4)
    bayesify.calibrate(model, loader(x, torch.randint(3, (8,))), task="classification")
    assert bayesify.predict(model, x, task="classification").set(0.9).all()

    model = linear("flipout", 4, 1)
    bayesify.calibrate(model, loader(x, torch.randn(8)), task="regression")
    low, high = bayesify.predict(model, x, task="regression").interval(0.9)
    assert low.isneginf().all()
    assert high.isposinf().all()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("task", ["classification", "regression"])
def test_the_calibration_data_are_never_predicted_worse_than_before(method: str, task: Any) -> None:
    for seed in range(4):
        torch.manual_seed(seed)
        model = bayesify.convert(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), method)
        bayesify.set_posterior_std(model, float(torch.rand(()) + 0.01))
        x = torch.randn(60, 4)
        y = torch.randint(3, (60,)) if task == "classification" else torch.randn(60, 3)
        found = bayesify.calibrate(model, loader(x, y), task=task, samples=8)
        mean, own, before, after = found.scores
        assert after.nll <= before.nll
        assert own.nll <= mean.nll
        assert found.helps == ("does not help" not in repr(found))


def test_a_model_whose_mean_made_the_labels_is_told_that_noise_does_not_help() -> None:
    model, x = linear("flipout", 4, 3, std=3.0), torch.randn(1000, 4)
    model[0].weight.data.mul_(10)
    found = bayesify.calibrate(model, loader(x, mean_of(model, x).argmax(-1)), task="classification")
    assert found.std_factor <= 0.5
    assert not found.helps
    assert "does not help" in repr(found)


def test_what_was_fitted_goes_with_the_model(tmp_path: Path) -> None:
    model, x = linear("flipout", 4, 3), torch.randn(50, 4)
    found = bayesify.calibrate(model, loader(x, torch.randint(3, (50,))), task="classification", samples=4)
    expected = bayesify.predict(model, x, task="classification", seed=0)
    bayesify.save(model, tmp_path / "model.pt")
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), bayesify.load(tmp_path / "model.pt")):
        assert stored_calibration(other) == found
        predicted = bayesify.predict(other, x, task="classification", seed=0)
        torch.testing.assert_close(predicted.mean, expected.mean)
        assert torch.equal(predicted.set(0.8), expected.set(0.8))
    assert stored_calibration(bayesify.revert(model)) is None
    assert found.to_dict()["scores"][3]["nll"] == found.scores[3].nll


def test_it_is_reproducible_and_leaves_everything_else_as_it_was() -> None:
    model, x, labels = linear("flipout", 4, 3), torch.randn(50, 4), torch.randint(3, (50,))
    other, state, model.training = copy.deepcopy(model), torch.get_rng_state(), True
    weight = model[0].weight.clone()
    assert bayesify.calibrate(model, loader(x, labels), task="classification") == bayesify.calibrate(
        other, [(x, labels)], task="classification"
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(model[0].weight, weight)
    assert model.training


def test_a_loss_of_ones_own_fits_the_factor_that_the_task_does() -> None:
    model, x = linear("flipout", 4, 3, std=1.0), torch.randn(300, 4)
    labels = classes(mean_of(model, x) * 2)
    other = copy.deepcopy(model)

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(output, target, reduction="none")

    own = bayesify.calibrate(model, [(x, labels)], loss=loss)
    assert own.std_factor == bayesify.calibrate(other, [(x, labels)], task="classification").std_factor
    assert own.temperature == 1


def test_labels_of_what_has_none_and_batches_by_name() -> None:
    """Token labels of -100 count for nothing."""
    model = bayesify.convert(nn.Sequential(nn.Linear(4, 3)), "flipout")
    x, labels = torch.randn(20, 6, 4), torch.randint(3, (20, 6))
    labels[:, 4:] = -100
    batches = [{"input": x[:10], "labels": labels[:10]}, {"input": x[10:], "labels": labels[10:]}]
    found = bayesify.calibrate(model, batches, task="classification", samples=2)
    assert found.conformal is not None
    assert found.conformal.count == 80


def test_what_cannot_be_calibrated_is_refused_and_the_posterior_is_as_it_was() -> None:
    model, x = linear("flipout", 4, 3), torch.randn(20, 4)
    before = model[0].weight_rho.clone()
    labels = torch.randint(3, (20,))
    wrong: list[tuple[Any, dict[str, Any], str]] = [
        ([(x, labels)], {"task": "clasification"}, "Did you mean 'classification'"),
        ([(x, labels)], {}, "there is no loss="),
        ([(x, labels)], {"task": "regression"}, "needs targets of its shape"),
        ([(x, labels.float())], {"task": "classification"}, "class labels"),
        ([(x,)], {"task": "classification"}, "holds no target"),
        ([], {"task": "classification"}, "no batch"),
        ([(x * math.nan, labels)], {"task": "classification"}, "not finite"),
        ([(x, labels)], {"task": "classification", "samples": 1}, "2 at least"),
        ([(x, labels)], {"task": "classification", "dim": 2}, "no dim=2"),
        ([(x, labels)], {"loss": lambda output, target: output.mean()}, "reduction='none'"),
    ]
    for data, options, words in wrong:
        with pytest.raises(UsageError, match=words):
            bayesify.calibrate(model, data, **options)
        assert torch.equal(model[0].weight_rho, before)
    with pytest.raises(NotVariationalError):
        bayesify.calibrate(nn.Linear(4, 3), [(x, labels)], task="classification")


def test_tied_posteriors_are_scaled_once() -> None:
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    model = bayesify.convert(nn.Sequential(first, second), "flipout")
    assert len(posterior_stds(model)) == 1
    before = model[0].weight_std.detach().clone()
    found = bayesify.calibrate(model, [(torch.randn(30, 4), torch.randn(30, 4))], task="regression")
    torch.testing.assert_close(model[1].weight_std, before * found.std_factor)


class Parts(nn.Module):
    """A network whose output is a dict."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        self.body, self.names = nn.Linear(4, 3), names

    def forward(self, x: Tensor) -> dict[str, Any]:
        return {"count": len(x), **{name: self.body(x) for name in self.names}}


def test_the_one_tensor_of_an_output_need_not_be_named() -> None:
    data = [(torch.randn(40, 4), torch.randint(3, (40,)))]
    how: dict[str, Any] = {"task": "classification", "samples": 2}
    found = bayesify.calibrate(bayesify.convert(Parts("logits")), data, **how)
    assert found.conformal is not None
    assert found.conformal.count == 40
    several = bayesify.convert(Parts("logits", "features"))
    with pytest.raises(UsageError, match="a dict of count, logits, features: name the tensor that targets"):
        bayesify.calibrate(several, data, **how)
    assert bayesify.calibrate(several, data, output="logits", **how).output == "logits"
