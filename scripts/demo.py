"""The whole way of a network: train a small ResNet on digits, convert it, train on, calibrate, compare, export.

`scripts/demo` runs it in an environment of its own. The parts are functions, for tests and `scripts/check_defaults.py`.
"""

from __future__ import annotations

import os
import shlex
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
import torch.nn.functional as F
from demo_net import ResNet
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

import bayesify

HERE = Path(__file__).resolve().parent
BATCH = 64
SAMPLES = 32

Advance = Callable[[], object]


@dataclass(frozen=True)
class Digits:
    """scikit-learn's bundled digits, 1797 images of 8×8 pixels, in three parts."""

    train: Tensor
    train_labels: Tensor
    validation: Tensor
    validation_labels: Tensor
    test: Tensor
    test_labels: Tensor

    @classmethod
    def split(cls, seed: int = 0, train: int = 1000, validation: int = 200) -> Digits:
        """A split by class: images to train on, to calibrate with, and the rest to test on."""
        images, labels = load_digits(return_X_y=True)
        images = (images / 16).astype("float32").reshape(-1, 1, 8, 8)
        images, others, labels, others_labels = _split(images, labels, train, seed)
        held_out, test, held_out_labels, test_labels = _split(others, others_labels, validation, seed)
        parts = (images, labels, held_out, held_out_labels, test, test_labels)
        return cls(*map(torch.as_tensor, parts))

    def flipped(self) -> Tensor:
        """Test images in the mirror, except 0, 1 and 8, which would be digits still."""
        asymmetric = ~torch.isin(self.test_labels, torch.tensor([0, 1, 8]))
        return self.test[asymmetric].flip(3)

    def noise(self) -> Tensor:
        """Images of random pixels."""
        return torch.rand_like(self.test)


@dataclass(frozen=True)
class Prediction:
    """Class probabilities per image, and how uncertain they are, in nats.

    Attributes:
        probs: the predictive distribution.
        entropy: all uncertainty: the entropy of `probs`.
        information: the weights' share of it, their mutual information with the label. Zero for a plain network.
    """

    probs: Tensor
    entropy: Tensor
    information: Tensor


def _split(images: Any, labels: Any, first: int, seed: int) -> list[Any]:
    return train_test_split(images, labels, train_size=first, random_state=seed, stratify=labels)


def pretrain(model: nn.Module, data: Digits, epochs: int, advance: Advance = bool) -> None:
    """Train a plain network from scratch, the learning rate up and down again (Smith and Topin 2018)."""
    optimizer = torch.optim.Adam(model.parameters())
    steps = epochs * -(-len(data.train) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=5e-3, total_steps=steps)
    _train(model, data, epochs, optimizer, lambda: (schedule.step(), advance()))


def fine_tune(model: nn.Module, data: Digits, epochs: int, advance: Advance = bool, lr: float = 1e-3) -> None:
    """Train on: a plain network by its NLL, a converted one by the ELBO, with bayesify's defaults."""
    groups = bayesify.param_groups(model, lr=lr) if hasattr(model, "kl") else model.parameters()
    _train(model, data, epochs, torch.optim.Adam(groups, lr=lr), advance)


def _train(model: nn.Module, data: Digits, epochs: int, optimizer: torch.optim.Optimizer, advance: Advance) -> None:
    n = len(data.train)
    model.train()
    for _ in range(epochs):
        for batch in torch.randperm(n).split(BATCH):
            loss = F.cross_entropy(model(data.train[batch]), data.train_labels[batch])
            if hasattr(model, "kl"):
                loss = loss + model.kl() / n
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            advance()


@torch.no_grad()
def predict(model: nn.Module, images: Tensor, samples: int = SAMPLES) -> Prediction:
    """What a network says of images: a converted one by so many draws."""
    if hasattr(model, "kl"):
        found = bayesify.predict(model, images, samples=samples, task="classification")
        return Prediction(found.mean, found.total, found.epistemic)
    probs = model.eval()(images).softmax(-1)
    entropy = torch.special.entr(probs).sum(-1)
    return Prediction(probs, entropy, torch.zeros_like(entropy))


def accuracy(probs: Tensor, labels: Tensor) -> float:
    """The share of images whose most probable class is right."""
    return (probs.argmax(-1) == labels).float().mean().item()


def nll(probs: Tensor, labels: Tensor) -> float:
    """The mean negative log-likelihood, in nats."""
    return F.nll_loss(probs.clamp_min(1e-12).log(), labels).item()


def calibration_error(probs: Tensor, labels: Tensor, bins: int = 15) -> float:
    """The expected calibration error: |accuracy - confidence|, averaged over bins of confidence (Guo et al. 2017)."""
    confidence, predicted = probs.max(-1)
    gap = (predicted == labels).float() - confidence
    which = (confidence * bins).long().clamp_max(bins - 1)
    return torch.zeros(bins).index_add(0, which, gap).abs().sum().item() / len(labels)


def command(folder: Path, *arguments: str, quiet: bool = False) -> None:
    """A command of bayesify as a user would run it in `folder`; it goes to stdout with what it says, unless `quiet`."""
    if not quiet:
        print(f"$ bayesify {shlex.join(arguments)}", flush=True)
    paths = [str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]  # where demo_net is
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    words = [sys.executable, "-m", "bayesify", *arguments, "--allow", "demo_net.*", "--force"]
    subprocess.run(words, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL if quiet else None)


def measures(model: nn.Module, data: Digits) -> dict[str, float]:
    """What the table shows of one network: how good on test digits, how uncertain there and away from digits."""
    inputs = {"digits": data.test, "flipped digits": data.flipped(), "noise": data.noise()}
    predictions = {name: predict(model, images) for name, images in inputs.items()}
    probs, labels = predictions["digits"].probs, data.test_labels
    return {
        "accuracy": accuracy(probs, labels),
        "NLL": nll(probs, labels),
        "calibration error": calibration_error(probs, labels),
        **{f"predictive entropy, {name}": one.entropy.mean().item() for name, one in predictions.items()},
        **{f"mutual information, {name}": one.information.mean().item() for name, one in predictions.items()},
    }


def results(scores: dict[str, list[dict[str, float]]]) -> Table:
    """The means over splits, a column for each network."""
    table = Table(title=f"test digits, means over {len(next(iter(scores.values())))} splits; uncertainties in nats")
    for heading in ("", *scores):
        table.add_column(heading, justify="right" if heading else "left")
    for name in next(iter(scores.values()))[0]:
        means = [statistics.mean(split[name] for split in splits) for splits in scores.values()]
        table.add_row(name, *(f"{mean:.2%}" if name == "accuracy" else f"{mean:.4f}" for mean in means))
    return table


def run_split(
    seed: int, folder: Path, method: str, epochs: int, more: int, progress: Progress
) -> dict[str, dict[str, float]]:
    """One split from training to measures. The first shows what the commands say, and leaves the page and the file."""
    torch.manual_seed(seed)
    data, plain = Digits.split(seed), ResNet()
    total = (epochs + 2 * more) * -(-len(data.train) // BATCH)
    task = progress.add_task(f"split {seed + 1}: training, converting, training on", total=total)
    pretrain(plain, data, epochs, lambda: progress.advance(task))
    torch.save(plain, folder / "resnet.pt")
    command(folder, "convert", "resnet.pt", "--method", method, quiet=seed > 0)
    converted = bayesify.load(folder / f"resnet.{method}.pt", allow=["demo_net.*"])
    for model in (plain, converted):
        fine_tune(model, data, more, lambda: progress.advance(task))
    scores = {"plain": measures(plain, data), method: measures(converted, data)}
    calibration = bayesify.calibrate(converted, [(data.validation, data.validation_labels)], task="classification")
    if seed == 0:
        print(calibration, flush=True)
        finish(converted, data, folder)
    return {**scores, f"{method}, calibrated": measures(converted, data)}


def finish(model: nn.Module, data: Digits, folder: Path) -> None:
    """Look at the trained network by the command line, and write it for another runtime."""
    bayesify.save(model, folder / "trained.pt")
    torch.save((data.validation, data.validation_labels), folder / "validation.pt")
    command(folder, "inspect", "trained.pt", "--data", "validation.pt", "--html", "report.html")
    command(folder, "export", "trained.pt", "-o", "resnet.onnx", "--samples", "16", "--input", "1x1x8x8")


@click.command(help=__doc__.partition("\n")[0])
@click.option("--method", type=click.Choice(["flipout", "lrt"]), default="flipout", show_default=True)
@click.option("--epochs", default=40, show_default=True, help="Of training the plain network.")
@click.option("--fine-tune", "more", default=10, show_default=True, help="Epochs of training on, for both networks.")
@click.option(
    "--splits", type=click.IntRange(1), default=3, show_default=True, help="Of the digits; one decides little."
)
@click.option("--folder", type=click.Path(path_type=Path), default=HERE.parent / "build/demo", help="For its files.")
def main(method: str, epochs: int, more: int, splits: int, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # tensors this small gain nothing by more
    with Progress(console=Console(stderr=True)) as progress:
        runs = [run_split(seed, folder, method, epochs, more, progress) for seed in range(splits)]
    Console(width=80).print(results({name: [run[name] for run in runs] for name in runs[0]}))


if __name__ == "__main__":
    main()
