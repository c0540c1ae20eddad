"""How a model predicts held-out data: each measure on data whose answer is known."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import nn

import bayesify
from bayesify.uncertainty.quality import SHARES, auroc, reliability, risks


def test_reliability_by_hand() -> None:
    probabilities = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.6, 0.4], [0.3, 0.7]])
    low, high = reliability(probabilities, torch.tensor([0, 1, 0, 1]), bins=2)
    assert (low.confidence, low.accuracy, low.count) == (pytest.approx(0.65), 1.0, 2)
    assert (high.confidence, high.accuracy, high.count) == (pytest.approx(0.85), 0.5, 2)


def test_risks_by_hand() -> None:
    found = dict(zip(SHARES, risks(torch.arange(20.0), (torch.arange(20) >= 10)), strict=True))
    assert found[0.5] == 0
    assert found[0.75] == pytest.approx(5 / 15)
    assert found[1.0] == 0.5
    assert risks(torch.arange(4.0), torch.tensor([4.0, 4.0, 4.0, 4.0]), root=True)[-1] == 2


def test_auroc_is_that_of_scikit_learn() -> None:
    own, other = torch.randn(50).round(decimals=1), (torch.randn(70) + 0.5).round(decimals=1)
    truth = torch.cat([torch.zeros(50), torch.ones(70)])
    assert auroc(own, other) == pytest.approx(roc_auc_score(truth, torch.cat([own, other])))


def test_classification() -> None:
    labels = torch.arange(90) % 3
    x = torch.eye(3)[labels] * 4 + 0.5 * torch.randn(90, 3)
    model: Any = bayesify.convert(nn.Sequential(nn.Linear(3, 3)))
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(3))
        model[0].bias.zero_()
    bayesify.set_posterior_std(model, 0.2)
    quality = bayesify.inspect(model, [(x, labels)], task="classification", samples=8, ood=torch.randn(50, 3)).quality
    assert quality is not None
    mean, sampled = quality.performances
    with bayesify.posterior_mean(model):
        logits = model(x).detach()
    assert mean.nll == pytest.approx(nn.functional.cross_entropy(logits, labels).item(), rel=1e-5)
    assert mean.accuracy == pytest.approx((logits.argmax(1) == labels).double().mean().item())
    assert sum(own.count for own in sampled.reliability) == quality.examples == 90
    assert [draws for draws, _ in quality.nll_by_samples] == [1, 2, 4, 8]
    assert quality.nll_by_samples[-1][1] == pytest.approx(sampled.nll)
    assert quality.separation is not None
    assert quality.separation.auroc["confidence"] > 0.9
    assert sum(quality.separation.own) == pytest.approx(1)
    assert all(0 <= covered <= 1 for _, covered in quality.coverage)


def test_regression_with_intervals_that_hold() -> None:
    x = torch.linspace(-1, 1, 400).unsqueeze(1)
    y = 2 * x + 0.3 * torch.randn(400, 1)
    model: Any = bayesify.convert(nn.Sequential(nn.Linear(1, 1)))
    with torch.no_grad():
        model[0].weight.fill_(2.0)
        model[0].bias.zero_()
    bayesify.set_posterior_std(model, 0.05)
    quality = bayesify.inspect(model, [(x, y)], task="regression", samples=16, ood=[10 * x]).quality
    assert quality is not None
    assert quality.performances[0].rmse == pytest.approx((y - 2 * x).square().mean().sqrt().item(), rel=1e-3)
    for level, covered in quality.coverage:
        assert covered == pytest.approx(level, abs=5 * (level * (1 - level) / 400) ** 0.5)
    assert quality.separation is not None
    assert quality.separation.auroc["epistemic std"] > 0.8
    assert set(quality.risks) == {"epistemic std", "total std"}
