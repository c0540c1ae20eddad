"""What is summed up of one tensor of a model's output over draws, and the triple that comes out of it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import UsageError
from ..estimators.precision import widened
from .likelihoods import variance_of
from .prediction import Task
from .streaming import LogMean, Moments

Measured = dict[str, Tensor | None]  # by Prediction's names of fields


class Spread:
    """Mean and variance over draws, and the noise that each draw predicts, if it does."""

    def __init__(self, keep: bool) -> None:
        self.outputs, self.noise = Moments(), Moments()
        self.kept: list[Tensor] | None = [] if keep else None
        self.kept_noise: list[Tensor] = []

    def add(self, outputs: Tensor, log_variances: Tensor | None = None) -> None:
        """More draws of the output, (draws, *shape), and of the log-variance around it."""
        self.outputs.add(outputs)
        noise = None if log_variances is None else variance_of(widened(log_variances))
        if noise is not None:
            self.noise.add(noise)
        if self.kept is not None:
            self.kept.append(widened(outputs))
            self.kept_noise += [] if noise is None else [noise]

    def result(self) -> Measured:
        """By the law of total variance: Var[y] = E[noise variance] + Var[output]."""
        mean, epistemic = self.outputs.mean, self.outputs.variance
        aleatoric = self.noise.mean.expand_as(mean) if self.noise.count else torch.zeros_like(mean)
        return {
            "mean": mean,
            **triple(aleatoric, epistemic),
            "std": (aleatoric + epistemic).sqrt(),
            "log_mean": None,
            "samples": None if self.kept is None else torch.cat(self.kept),
            "noise_samples": torch.cat(self.kept_noise) if self.kept_noise else None,
        }


class Classes:
    """Class probabilities, and the entropies of their mean and of each draw's (Depeweg et al. 2018, eq. 8), in nats."""

    def __init__(self, dim: int, keep: bool) -> None:
        self.dim = dim
        self.probabilities, self.entropy, self.log_mean = Moments(), Moments(), LogMean()
        self.kept: list[Tensor] | None = [] if keep else None

    def add(self, logits: Tensor, _: None = None) -> None:
        """More draws of the logits: (draws, *shape)."""
        dim = self._class_dim(logits)
        logs = torch.log_softmax(widened(logits), dim)
        self.log_mean.add(logs)
        probabilities = logs.exp_()
        self.entropy.add(torch.special.entr(probabilities).sum(dim))
        self.probabilities.add(probabilities)
        if self.kept is not None:
            self.kept.append(probabilities)

    def result(self) -> Measured:
        """Entropy of the mean = expected entropy + mutual information of label and weights."""
        mean, aleatoric = self.probabilities.mean, self.entropy.mean
        total = torch.special.entr(mean).sum(self.dim)
        return {
            "mean": mean,
            **triple(aleatoric, (total - aleatoric).clamp_min_(0)),  # below zero by rounding only: entropy is concave
            "std": self.probabilities.variance.sqrt(),
            "log_mean": self.log_mean.value,
            "samples": None if self.kept is None else torch.cat(self.kept),
            "noise_samples": None,
        }

    def _class_dim(self, logits: Tensor) -> int:
        """Where the classes are in (draws, *shape)."""
        dims = logits.dim() - 1
        if not -dims <= self.dim < dims:
            raise UsageError(f"the logits have {dims} dimensions, {tuple(logits.shape[1:])}, and no dim={self.dim}")
        dim = self.dim % dims + 1
        if logits.shape[dim] < 2:
            raise UsageError(
                f"the logits {tuple(logits.shape[1:])} have one class along dim={self.dim}, and a softmax over it is 1 "
                "whatever it is. Of a sigmoid's logit, say task='binary'; else pick another dim"
            )
        return dim


def triple(aleatoric: Tensor, epistemic: Tensor) -> dict[str, Tensor]:
    """The two parts, and their sum."""
    return {"total": aleatoric + epistemic, "aleatoric": aleatoric, "epistemic": epistemic}


def measure(task: Task | None, dim: int, keep: bool) -> Any:
    """What sums up the draws of one tensor under this task."""
    return Classes(dim, keep) if task == "classification" else Spread(keep)
