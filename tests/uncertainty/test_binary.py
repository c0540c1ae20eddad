"""`task="binary"`: logits of sigmoids are the classes no and yes, here as everywhere."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bayesify
from bayesify.errors import UsageError


class AsClasses(nn.Module):
    """The same network, its logits z written as (0, z)."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        z = self.inner(x)
        return torch.stack([torch.zeros_like(z), z], -1)


def network(outputs: int) -> Any:
    layers = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, outputs))
    return bayesify.convert(layers, "flipout").eval()


@pytest.mark.parametrize("outputs", [1, 3])
def test_it_is_the_classification_into_no_and_yes(outputs: int) -> None:
    """Calibration and prediction, to rounding: one logit, and several labels that do not exclude each other."""
    model, x = network(outputs), torch.randn(60, 4)
    targets = (torch.rand(60, outputs) < torch.sigmoid(3 * x[:, :1])).float()
    classes = AsClasses(copy.deepcopy(model))
    found = bayesify.calibrate(model, [(x, targets)], task="binary", samples=4)
    expected = bayesify.calibrate(classes, [(x, targets.long())], task="classification", samples=4)
    assert found.std_factor == expected.std_factor
    assert found.temperature == pytest.approx(expected.temperature, rel=1e-6)
    ours = bayesify.predict(model, x, task="binary", seed=3)
    theirs = bayesify.predict(classes, x, task="classification", seed=3)
    assert ours.mean.shape == (60, outputs, 2)
    for name in ("mean", "total", "epistemic", "label", "confidence"):
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name))
    assert torch.equal(ours.set(0.9), theirs.set(0.9))


def test_targets_of_a_single_logit_may_lack_its_dimension() -> None:
    model, x = network(1), torch.randn(40, 4)
    other = copy.deepcopy(model)
    yes = torch.rand(40) < 0.5
    assert bayesify.calibrate(model, [(x, yes)], task="binary") == bayesify.calibrate(
        other, [(x, yes.float().unsqueeze(1))], task="binary"
    )


def test_targets_that_are_missing_count_for_nothing() -> None:
    model, x, targets = network(3), torch.randn(40, 4), torch.randint(2, (40, 3))
    targets[:, 1] = -100
    other = copy.deepcopy(model)
    found = bayesify.calibrate(model, [(x, targets)], task="binary", samples=2)
    assert found.conformal is not None
    assert found.conformal.count == 80
    bayesify.fit_std(other, [(x, targets)], task="binary", samples=2)
    assert other[2].weight_std[1].std() < 1e-3 * other[2].weight_std[1].mean()  # nothing but the prior knows of it


def test_fit_std_has_the_curvature_of_each_sigmoid() -> None:
    """Σₙ p(1-p) (φV)², for each output."""
    model, x = bayesify.convert(nn.Sequential(nn.Linear(5, 2)), "flipout").eval(), torch.randn(200, 5)
    targets = (torch.rand(200, 2) < 0.5).float()
    found = bayesify.fit_std(model, [(x, targets)], task="binary", samples=4)
    with torch.no_grad(), bayesify.posterior_mean(model):
        p = torch.sigmoid(model(x))
    precision = (p * (1 - p)).T @ (x @ model[0].weight_basis).square() + found.precision
    torch.testing.assert_close(model[0].weight_std.detach(), precision.rsqrt(), rtol=1e-4, atol=0)


def test_what_is_neither_yes_nor_no_is_refused() -> None:
    model, x = network(1), torch.randn(20, 4)
    for targets, words in ((torch.rand(20, 1), "0 or 1"), (torch.ones(20, 2), "targets of their shape")):
        with pytest.raises(UsageError, match=words):
            bayesify.calibrate(model, [(x, targets)], task="binary")
    for call in (bayesify.calibrate, bayesify.fit_std):
        with pytest.raises(UsageError, match="task='binary'"):
            call(model, [(x, torch.ones(20, dtype=torch.long))], task="classification")
    with pytest.raises(UsageError, match="task='binary'"):
        bayesify.predict(model, x, task="classification")


def test_inspect_reads_it_as_a_classification() -> None:
    model, x = network(2), torch.randn(60, 4)
    found = bayesify.inspect(model, [(x, torch.randint(2, (60, 2)))], task="binary", samples=4, ood=10 * x)
    assert found.quality is not None
    assert found.quality.task == "classification"
    assert found.quality.performances[0].accuracy is not None
