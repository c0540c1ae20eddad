"""Negative log-likelihoods of mixtures over draws, and the scores that say how honest a prediction is."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

BINS = 15
_MOST_LOG_VARIANCE = 40.0  # exp(88) is infinite in float32, and a factor of the noise comes on top
_GOLDEN = (math.sqrt(5) - 1) / 2
_STEPS = 40  # of the golden section: an interval of 9 becomes 4e-8


def mixture_nll(log_likelihoods: Tensor) -> Tensor:
    """-log((1/S) Σₛ exp(logₛ)) in nats, elementwise, of the log-likelihoods (S, *shape) of S draws."""
    return math.log(len(log_likelihoods)) - torch.logsumexp(log_likelihoods, 0)


def class_log_likelihoods(logits: Tensor, labels: Tensor, temperature: Tensor | float = 1.0) -> Tensor:
    """log p(label) of each draw: (S, n), for logits (S, n, classes) and labels (n,)."""
    logs = torch.log_softmax(logits / temperature, -1)
    return logs.gather(-1, labels.expand(len(logits), -1).unsqueeze(-1)).squeeze(-1)


def wrong_log_likelihoods(logits: Tensor, labels: Tensor, temperature: Tensor | float = 1.0) -> Tensor:
    """log(1 - p(label)) of each draw, as `class_log_likelihoods`; finite where p(label) is rounded to 1."""
    logs = torch.log_softmax(logits / temperature, -1)
    others = logs.scatter(-1, labels.expand(len(logits), -1).unsqueeze(-1), -math.inf)
    return torch.logsumexp(others, -1)


def variance_of(log_variance: Tensor) -> Tensor:
    """exp, held to what float32 can be divided by: a draw of the log-variance may be as far out as its posterior is."""
    return log_variance.clamp(-_MOST_LOG_VARIANCE, _MOST_LOG_VARIANCE).exp()


def normal_log_likelihoods(means: Tensor, variances: Tensor, targets: Tensor) -> Tensor:
    """log Normal(target; mean, variance) of each draw: (S, *shape)."""
    return -0.5 * ((targets - means).square() / variances + (2 * math.pi * variances).log())


def calibration_error(probabilities: Tensor, labels: Tensor, bins: int = BINS) -> float:
    """Expected calibration error over bins of equally many examples (Nguyen & O'Connor 2015).

    Args:
        probabilities: (n, classes).
        labels: (n,).
    """
    confidence, predicted = probabilities.max(-1)
    order = confidence.argsort(stable=True)
    excess = (confidence - (predicted == labels).to(confidence.dtype))[order]
    return float(sum(part.sum().abs() for part in excess.tensor_split(bins)) / max(len(labels), 1))


def golden_minimum(function: Callable[[Tensor], Tensor], low: Tensor, high: Tensor) -> Tensor:
    """The place of the minimum between `low` and `high`, elementwise, of a function with one valley (Kiefer 1953)."""
    left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    of_left, of_right = function(left), function(right)
    for _ in range(_STEPS):
        lower = of_left < of_right
        low, high = torch.where(lower, low, left), torch.where(lower, right, high)
        inner = torch.where(lower, high - _GOLDEN * (high - low), low + _GOLDEN * (high - low))
        of_inner = function(inner)
        left, right = torch.where(lower, inner, right), torch.where(lower, left, inner)
        of_left, of_right = torch.where(lower, of_inner, of_right), torch.where(lower, of_left, of_inner)
    return (low + high) / 2


def as_good(losses: Tensor, best: Tensor) -> bool:
    """Whether losses are the best ones' up to one standard error of the difference.

    The rule of Breiman et al. 1984, section 3.4.3. Of all that are as good, `calibrate` takes the most uncertain: data
    that differ a little from the calibration data ask for that.
    """
    excess = losses - best
    error = excess.std() / excess.numel() ** 0.5 if excess.numel() > 1 else 0.0
    return bool(excess.mean() <= error)
