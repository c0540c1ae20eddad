"""The demo runs from end to end on a tiny budget, and its measures are what they say."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from demo import Digits, accuracy, calibration_error, fine_tune, main, nll
from torch import nn

import bayesify


def test_the_whole_demo(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ["--epochs", "1", "--fine-tune", "1", "--splits", "2", "--folder", str(tmp_path)]
    result = CliRunner().invoke(main, arguments, catch_exceptions=False)

    assert result.exit_code == 0
    for line in ("$ bayesify convert resnet.pt --method flipout", "accuracy", "NLL", "calibration error", "noise"):
        assert line in result.output
    printed = capfd.readouterr().out  # what the commands say
    for line in ("FlipoutConv2d", "Wrote report.html", "Wrote resnet.onnx"):
        assert line in printed
    assert isinstance(bayesify.load(tmp_path / "resnet.flipout.pt", allow=["demo_net.*"]).fc, bayesify.nn.FlipoutLinear)


def test_the_split_has_no_image_in_both_parts() -> None:
    data = Digits.split(seed=3, train=1200, validation=100)
    parts = [{image.numpy().tobytes() for image in part} for part in (data.train, data.validation, data.test)]
    assert (len(data.train), len(data.validation), len(data.test)) == (1200, 100, 497)
    assert not any(one & other for one, other in combinations(parts, 2))
    assert len(data.flipped()) == (~torch.isin(data.test_labels, torch.tensor([0, 1, 8]))).sum()


def test_measures_by_hand() -> None:
    probs = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.35, 0.65]])
    labels = torch.tensor([0, 1, 1, 1])
    assert accuracy(probs, labels) == 0.75
    assert nll(probs, labels) == pytest.approx(-sum(map(math.log, (0.9, 0.1, 0.6, 0.65))) / 4)
    # bins of 1/15: {0.9, 0.9} is right in half, {0.6} and {0.65} fall into one bin and are right
    assert calibration_error(probs, labels) == pytest.approx((2 * abs(0.5 - 0.9) + abs(2 - 1.25)) / 4)


def test_fine_tuning_follows_the_elbo() -> None:
    data = Digits.split()
    few = replace(data, train=data.train[:64], train_labels=data.train_labels[:64])
    model = bayesify.convert(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), {"prior": {"std": {"init_std": 50.0}}})
    before = model.kl().item()
    fine_tune(model, few, epochs=40, lr=5e-3)
    assert model.kl().item() < 0.9 * before  # the KL alone can pull scales towards a prior this wide
