"""The defaults do no harm: a deep network keeps its accuracy, and one that is trained on keeps up with the plain one.

`scripts/check_defaults.py` measures the second on the demo's own network, and docs/defaults.md has the figures.
"""

from __future__ import annotations

import pytest
import torch
from check_defaults import compare
from demo import Digits, accuracy, predict, pretrain
from demo_net import ResNet
from torch import nn

import bayesify


def deep_residual() -> nn.Module:
    return ResNet((8, 12, 16), blocks=5)


def deep_plain() -> nn.Module:
    """30 layers in one chain, no shortcuts: what one layer adds in noise, all later ones carry on."""
    hidden = [layer for _ in range(28) for layer in (nn.BatchNorm1d(48), nn.ReLU(), nn.Linear(48, 48))]
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 48), *hidden, nn.ReLU(), nn.Linear(48, 10))


@pytest.fixture(scope="module", params=[(deep_residual, 8), (deep_plain, 20)], ids=["residual", "plain"])
def trained(request: pytest.FixtureRequest) -> tuple[nn.Module, Digits]:
    make, epochs = request.param
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model, data = make(), Digits.split()
    pretrain(model, data, epochs)
    return model, data


@pytest.mark.parametrize("method", ["flipout", "lrt"])
def test_a_deep_trained_network_keeps_its_accuracy_under_the_initial_noise(
    trained: tuple[nn.Module, Digits], method: str
) -> None:
    model, data = trained
    noisy = bayesify.convert(model, method)
    assert sum(1 for _ in bayesify.variational_layers(noisy)) >= 30

    before = accuracy(predict(model, data.test).probs, data.test_labels)
    passes = [accuracy(noisy.eval()(data.test), data.test_labels) for _ in range(8)]

    assert before > 0.7  # else there was nothing to lose
    assert sum(passes) / len(passes) > 0.95 * before  # each pass by itself: an average over passes forgives more


def test_fine_tuning_by_default_keeps_up_with_the_plain_network() -> None:
    """Two seeds of a small network are worth a coarse bound; a prior too wide or too narrow breaks through it."""
    found = compare(seeds=2, budget=5, pretraining=40, make=lambda: ResNet((8, 16, 32)), policy="flipout")
    for epochs, (plain, converted) in found.items():
        assert converted.nll < plain.nll + 0.02, (epochs, plain, converted)
        assert converted.accuracy > plain.accuracy - 0.015, (epochs, plain, converted)
