"""The demo runs from end to end on a tiny budget, and its measures are what they say."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from demo import Digits, accuracy, calibration_error, fine_tune, main, nll, predict
from torch import nn

import bayesify


def test_the_whole_demo(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ["--epochs", "1", "--fine-tune", "1", "--splits", "2", "--folder", str(tmp_path)]
    result = CliRunner().invoke(main, arguments, catch_exceptions=False)

    assert result.exit_code == 0
    for line in ("$ bayesify convert resnet.pt --method flipout", "accuracy", "NLL", "calibration error", "noise"):
        assert line in result.output
    assert "FlipoutConv2d" in capfd.readouterr().out  # the command's own report
    assert isinstance(bayesify.load(tmp_path / "resnet.flipout.pt", allow=["demo_net.*"]).fc, bayesify.nn.FlipoutLinear)


def test_the_split_has_no_image_in_both_parts() -> None:
    data = Digits.split(seed=3, train=1200)
    train, test = ({image.numpy().tobytes() for image in part} for part in (data.train, data.test))
    assert (len(data.train), len(data.test)) == (1200, 597)
    assert not train & test
    assert len(data.flipped()) == (~torch.isin(data.test_labels, torch.tensor([0, 1, 8]))).sum()


def test_measures_by_hand() -> None:
    probs = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.35, 0.65]])
    labels = torch.tensor([0, 1, 1, 1])
    assert accuracy(probs, labels) == 0.75
    assert nll(probs, labels) == pytest.approx(-sum(map(math.log, (0.9, 0.1, 0.6, 0.65))) / 4)
    # bins of 1/15: {0.9, 0.9} is right in half, {0.6} and {0.65} fall into one bin and are right
    assert calibration_error(probs, labels) == pytest.approx((2 * abs(0.5 - 0.9) + abs(2 - 1.25)) / 4)


def test_mutual_information_is_what_disagreement_adds() -> None:
    class Flip(nn.Module):
        calls = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return torch.tensor([[100.0, 0.0] if self.calls % 2 else [0.0, 100.0], [0.0, 0.0]])

    found = predict(Flip(), torch.zeros(2, 1), samples=4)
    assert torch.allclose(found.entropy, torch.full((2,), math.log(2)))
    assert torch.allclose(found.information, torch.tensor([math.log(2), 0.0]), atol=1e-6)


def test_fine_tuning_follows_the_elbo() -> None:
    data = Digits.split()
    few = Digits(data.train[:64], data.train_labels[:64], data.test, data.test_labels)
    model = bayesify.convert(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), {"prior": {"std": {"init_std": 50.0}}})
    before = model.kl().item()
    fine_tune(model, few, epochs=40, lr=5e-3)
    assert model.kl().item() < 0.9 * before  # the KL alone can pull scales towards a prior this wide
