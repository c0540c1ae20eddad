#!/usr/bin/env python3
"""Are the defaults safe to train with? The demo's network, fine-tuned as converted and, for as long, as it was.

    scripts/check_defaults.py [--seeds 5] [--method lrt] [--budget 10] [--pretrain 40] [--policy '{prior: {std: 1.0}}']

Prints means over seeds after one and after five budgets, and exits with 1 where the converted network has fallen behind
by more than a point of accuracy or at all in NLL. docs/defaults.md says what came out.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import click
import torch
from demo import Digits, accuracy, calibration_error, fine_tune, nll, predict, pretrain
from demo_net import ResNet
from rich.console import Console
from rich.progress import track
from ruamel.yaml import YAML
from torch import nn

import bayesify

ALLOWED_LOSS = 0.01  # of accuracy


@dataclass(frozen=True)
class Scores:
    """What a network reaches on the test set."""

    accuracy: float
    nll: float
    calibration_error: float

    @classmethod
    def of(cls, model: nn.Module, data: Digits, samples: int) -> Scores:
        """By the average over `samples` passes."""
        probs, labels = predict(model, data.test, samples).probs, data.test_labels
        return cls(accuracy(probs, labels), nll(probs, labels), calibration_error(probs, labels))

    @classmethod
    def mean(cls, scores: list[Scores]) -> Scores:
        """Over seeds."""
        columns = zip(*((one.accuracy, one.nll, one.calibration_error) for one in scores), strict=True)
        return cls(*(sum(values) / len(scores) for values in columns))

    def behind(self, plain: Scores) -> bool:
        """Whether these fall behind the plain network's."""
        return self.accuracy < plain.accuracy - ALLOWED_LOSS or self.nll > plain.nll

    def __str__(self) -> str:
        return f"accuracy {self.accuracy:.4f}  NLL {self.nll:.4f}  calibration error {self.calibration_error:.4f}"


def after_training(
    seed: int, budgets: tuple[int, ...], pretraining: int, make: Callable[[], nn.Module], policy: Any
) -> tuple[list[Scores], list[Scores]]:
    """One seed's scores after each number of epochs in `budgets`, beginning with 0: plain, and converted."""
    data = Digits.split(seed)
    torch.manual_seed(seed)
    plain = make()
    pretrain(plain, data, pretraining)
    converted = bayesify.convert(copy.deepcopy(plain), policy)
    return list(_scores(plain, data, budgets, 1)), list(_scores(converted, data, budgets, 16))


def _scores(model: nn.Module, data: Digits, budgets: tuple[int, ...], samples: int) -> Iterator[Scores]:
    done = 0
    for epochs in (0, *budgets):
        fine_tune(model, data, epochs - done)
        done = epochs
        yield Scores.of(model, data, samples)


def compare(
    seeds: int, budget: int, pretraining: int, make: Callable[[], nn.Module], policy: Any
) -> dict[str, tuple[Scores, Scores]]:
    """Means over seeds, (plain, converted), for: as converted, after one budget, after five."""
    budgets = (budget, 5 * budget)
    console = Console(stderr=True)
    runs = [
        after_training(seed, budgets, pretraining, make, policy)
        for seed in track(range(seeds), "training", console=console)
    ]
    plain, converted = ([Scores.mean(list(at)) for at in zip(*side, strict=True)] for side in zip(*runs, strict=True))
    names = ("0 epochs", *(f"{epochs} epochs" for epochs in budgets))
    return {name: pair for name, *pair in zip(names, plain, converted, strict=True)}


@click.command(help=__doc__)
@click.option("--seeds", default=5, show_default=True)
@click.option("--method", type=click.Choice(["flipout", "lrt"]), default="flipout", show_default=True)
@click.option("--budget", default=10, show_default=True, help="Epochs.")
@click.option("--pretrain", "pretraining", default=40, show_default=True, help="Epochs.")
@click.option("--policy", default="{}", help="What to change in the defaults, as YAML.")
def main(seeds: int, method: str, budget: int, pretraining: int, policy: str) -> None:
    changed = {"method": method, **(YAML(typ="safe").load(policy) or {})}
    scores = compare(seeds, budget, pretraining, ResNet, changed)
    for name, (plain, converted) in scores.items():
        print(f"{name:10}  plain      {plain}\n{'':10}  {method:9}  {converted}")
    behind = [name for name, (plain, converted) in list(scores.items())[1:] if converted.behind(plain)]
    print(f"behind after {', '.join(behind)}" if behind else "never behind")
    sys.exit(bool(behind))


if __name__ == "__main__":
    main()
