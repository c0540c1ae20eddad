"""The tasks of `scripts/compare`: data, a network that is too large for them, shifted and foreign inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from scipy.ndimage import gaussian_filter1d, rotate
from sklearn.datasets import load_breast_cancer, load_digits
from torch import Tensor, nn

Data = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Task:
    """One data set, split by a seed.

    Attributes:
        kind: `classification`, or `regression` by a network that gives mean and log-variance.
        make: a new network, with dropout of this probability after each hidden layer.
        train, validation, test, shifted: inputs and targets.
        foreign: inputs that no training example is like.
    """

    kind: str
    make: Callable[[float], nn.Module]
    train: Data
    validation: Data
    test: Data
    shifted: Data
    foreign: Tensor
    epochs: int = 40
    batch: int = 50
    lr: float = 1e-3


def digits(seed: int) -> Task:
    """8 × 8 digits by an MLP; shifted: turned by up to 40 degrees; foreign: upside down."""
    digits: Any = load_digits()
    images, labels = digits.images / 16, digits.target
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(images))
    images, labels = images[order], labels[order]
    turned = np.stack([rotate(image, rng.uniform(-40, 40), reshape=False, order=1) for image in images[1000:]])
    return _classes(images, labels, turned, images[1000:, ::-1, ::-1], lambda p: mlp(64, 100, 10, p), 800, 1000)


def signals(seed: int) -> Task:
    """MNIST-1D by a convolutional network (Greydanus & Kobak 2020: 40 values a signal), the recipe written out here."""
    x, labels = mnist1d(2600, seed, noise=1.0)
    shifted, _ = mnist1d(2600, seed, noise=2.5)
    foreign = np.cumsum(np.random.default_rng(seed).normal(0, 0.3, (800, 40)), 1)
    return _classes(x[:, None], labels, shifted[1800:, None], foreign[:, None], conv, 1400, 1800)


def deep_signals(seed: int) -> Task:
    """The same signals, by a network of 8 layers with BatchNorm."""
    return replace(signals(seed), make=deep_conv)


def tumours(seed: int) -> Task:
    """569 tumours: the worst concavity of a cell, from nine means over cells."""
    table: Any = load_breast_cancer()
    names = list(table.feature_names)
    means = [at for at in range(10) if names[at] != "mean concavity"]
    return _numbers(table.data[:, means], table.data[:, names.index("worst concavity")], seed, 250, 330)


def piston(seed: int) -> Task:
    """How long a piston takes for a cycle (Ben-Ari & Steinberg 2007), its noise growing with one of seven inputs."""
    rng = np.random.default_rng(seed)
    units = rng.uniform(size=(1200, 7))
    low = np.array([30, 0.005, 0.002, 1000, 90_000, 290, 340])
    high = np.array([60, 0.020, 0.010, 5000, 110_000, 296, 360])
    mass, surface, volume, spring, pressure, ambient, filling = (low + units * (high - low)).T
    force = pressure * surface + 19.62 * mass - spring * volume / surface
    gas = pressure * volume * ambient / filling
    present = surface / (2 * spring) * (np.sqrt(force**2 + 4 * spring * gas) - force)
    cycle = 2 * np.pi * np.sqrt(mass / (spring + surface**2 * gas / present**2))
    noise = rng.normal(size=len(cycle)) * 0.15 * np.exp(2.4 * (units[:, 1] - 0.5))
    return _numbers(units, (cycle - cycle.mean()) / cycle.std() + noise, seed, 300, 400)


TASKS = {"digits": digits, "mnist1d": signals, "mnist1d-deep": deep_signals, "tumours": tumours, "piston": piston}


def mnist1d(count: int, seed: int, noise: float) -> tuple[Any, Any]:
    """Signals of ten templates: padded, scaled, sheared, shifted, with smooth and rough noise, 40 values."""
    templates = np.array(_TEMPLATES, dtype=float)
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(count) % 10)
    rows = []
    for label in labels:
        padding = rng.integers(36, 61)
        row = np.concatenate([templates[label], np.zeros(padding)])
        row = np.interp(np.linspace(0, len(row) - 1, len(row) + padding), np.arange(len(row)), row)
        row = row * (1 + 0.4 * (rng.uniform() - 0.5)) - 0.75 * (rng.uniform() - 0.5) * np.linspace(-0.5, 0.5, len(row))
        row = np.roll(row, rng.integers(0, len(row)))
        row = row + gaussian_filter1d(noise * rng.normal(0, 0.5, len(row)), 2)
        row = row + noise * rng.normal(0, 0.02, len(row))
        rows.append(np.interp(np.linspace(0, len(row) - 1, 40), np.arange(len(row)), row))
    return np.stack(rows), labels


_TEMPLATES = [
    [5, 6, 6.5, 6.75, 7, 7, 7, 7, 6.75, 6.5, 6, 5],
    [5, 3, 3, 3.4, 3.8, 4.2, 4.6, 5, 5.4, 5.8, 5, 5],
    [5, 6, 6.5, 6.5, 6, 5.25, 4.75, 4, 3.5, 3.5, 4, 5],
    [5, 6, 6.5, 6.5, 6, 5, 5, 6, 6.5, 6.5, 6, 5],
    [5, 4.4, 3.8, 3.2, 2.6, 2.6, 5, 5, 5, 5, 5, 5],
    [5, 3, 3, 3, 3, 5, 6, 6.5, 6.5, 6, 4.5, 5],
    [5, 4, 3.5, 3.25, 3, 3, 3, 3, 3.25, 3.5, 4, 5],
    [5, 7, 7, 6.6, 6.2, 5.8, 5.4, 5, 4.6, 4.2, 5, 5],
    [5, 4, 3.5, 3.5, 4, 5, 5, 4, 3.5, 3.5, 4, 5],
    [5, 4, 3.5, 3.5, 4, 5, 5, 5, 5, 4.7, 4.3, 5],
]


def mlp(inputs: int, hidden: int, outputs: int, dropout: float) -> nn.Module:
    """Two hidden layers."""
    layers: list[nn.Module] = [nn.Flatten()]
    for width in (inputs, hidden):
        layers += [nn.Linear(width, hidden), nn.ReLU(), *([nn.Dropout(dropout)] if dropout else [])]
    return nn.Sequential(*layers, nn.Linear(hidden, outputs))


def conv(dropout: float) -> nn.Module:
    """Three convolutions and a Linear layer."""
    layers: list[nn.Module] = []
    for width in (1, 25, 25):
        layers += [nn.Conv1d(width, 25, 5, 2, 1), nn.ReLU(), *([nn.Dropout(dropout)] if dropout else [])]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(100, 10))


def deep_conv(dropout: float) -> nn.Module:
    """Seven convolutions with BatchNorm, and a Linear layer."""
    layers: list[nn.Module] = []
    for width, stride in zip((1, *[16] * 6), (2, 1, 2, 1, 2, 1, 1), strict=True):
        layers += [nn.Conv1d(width, 16, 3, stride, 1, bias=False), nn.BatchNorm1d(16), nn.ReLU()]
        layers += [nn.Dropout(dropout)] if dropout else []
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(80, 10))


def _tensor(array: Any) -> Tensor:
    return torch.tensor(np.ascontiguousarray(array), dtype=torch.float32)


def _classes(x: Any, y: Any, shifted: Any, foreign: Any, make: Any, train: int, rest: int) -> Task:
    x, y = _tensor(x), torch.tensor(y)
    test = y[rest:]
    return Task(
        "classification", make, (x[:train], y[:train]), (x[train:rest], y[train:rest]), (x[rest:], test),
        (_tensor(shifted), test), _tensor(foreign),
    )  # fmt: skip


def _numbers(x: Any, y: Any, seed: int, train: int, rest: int) -> Task:
    """Shifted: the seventh of the rows that lies furthest along the first principal axis. Foreign: rows times 3."""
    x, y = (x - x.mean(0)) / x.std(0), (y - y.mean()) / y.std()
    axis = x @ np.linalg.svd(x, full_matrices=False)[2][0]
    far = np.argsort(axis)[-len(x) // 7 :]
    near = np.random.default_rng(seed).permutation(np.setdiff1d(np.arange(len(x)), far))
    parts = [(_tensor(x[rows]), _tensor(y[rows])[:, None]) for rows in np.split(near, (train, rest))]
    foreign = _tensor(x[near[rest:]]) * 3
    return Task(
        "regression", lambda p: mlp(x.shape[1], 50, 2, p), *parts, (_tensor(x[far]), _tensor(y[far])[:, None]), foreign,
        lr=2e-3,
    )  # fmt: skip
