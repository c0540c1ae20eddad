"""Classification: logits and labels, a temperature, and sets of classes."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ...errors import UsageError
from ..calibration import Calibration, Scores
from ..conformal import Conformal, mass_before
from ..likelihoods import (
    as_good,
    calibration_error,
    class_log_likelihoods,
    golden_minimum,
    mixture_nll,
    wrong_log_likelihoods,
)
from ..prediction import prediction_set
from .data import LEVEL, Comparison, HeldOut, Outputs

IGNORED = -100  # torch's label for what has none
_TEMPERATURES = (0.02, 50.0)
_HALVINGS = 20  # of the interval above the best temperature


class Labels(HeldOut):
    """Classification: logits and class labels."""

    def paired(self, leaves: list[Tensor], target: Any) -> Outputs:
        logits = leaves[0]
        dims = logits.dim() - 1
        if not -dims <= self.blank.dim < dims:
            shape = tuple(logits.shape[1:])
            raise UsageError(f"the logits have {dims} dimensions, {shape}, and no dim={self.blank.dim}")
        logits = logits.movedim(self.blank.dim % dims + 1, -1)
        if not isinstance(target, Tensor) or target.shape != logits.shape[1:-1] or target.is_floating_point():
            raise UsageError(_misfit(leaves[0].shape[1:], self.blank.dim % dims, target))
        labelled = target.flatten() != IGNORED
        labels = target.flatten()[labelled].long()
        _refuse_outside(labels, logits.shape[-1])
        return [logits.flatten(1, -2)[:, labelled], labels.unsqueeze(0)]

    def counted(self, logits: Tensor, target: Tensor) -> Tensor:
        """Where an example, or one of its positions, has a label: of a shape that broadcasts to the logits'."""
        return (target != IGNORED).unsqueeze(self.blank.dim)

    def losses(self, outputs: Outputs, calibration: Calibration) -> Tensor:
        logits, labels = outputs
        return mixture_nll(class_log_likelihoods(logits, labels, calibration.temperature))

    def compared(self, outputs: Outputs) -> Comparison:
        return self._at(outputs, self.blank)

    def fit(self, outputs: Outputs) -> Calibration:
        best = replace(self.blank, temperature=self._temperature(outputs))
        probabilities, labels = self.probabilities(outputs, best)
        mass = mass_before(probabilities, -1)
        return replace(best, conformal=Conformal.of(mass.gather(-1, labels.unsqueeze(-1))))

    def _temperature(self, outputs: Outputs) -> float:
        """The highest one that predicts as well as the best, and no worse than 1 does (see `as_good`)."""

        def at(log_temperature: Tensor) -> Comparison:
            return self._at(outputs, replace(self.blank, temperature=float(log_temperature.exp())))

        low, high = (torch.tensor(math.log(value), dtype=torch.float64) for value in _TEMPERATURES)
        best = golden_minimum(lambda log_temperature: at(log_temperature).losses.mean(), low, high)
        of_one, of_best = at(torch.zeros(())), at(best)
        if of_best.nll >= of_one.nll:
            return 1.0
        for _ in range(_HALVINGS):
            middle = (best + high) / 2
            here = at(middle)
            good = here.nll <= of_one.nll and as_good(here.losses, of_best.losses)
            best, high = (middle, high) if good else (best, middle)
        return float(best.exp())

    def _at(self, outputs: Outputs, calibration: Calibration) -> Comparison:
        """As if half a target more, like the mean of all, had been predicted wrong (Krichevsky & Trofimov 1981).

        Else a model that is right on all of few data would be made as sure as can be, and ruinous where it is wrong.
        """
        logits, labels = outputs
        right = self.losses(outputs, calibration)
        wrong = mixture_nll(wrong_log_likelihoods(logits, labels, calibration.temperature))
        return Comparison(float(right.mean()), right + wrong / (2 * len(wrong)))

    def scores(self, name: str, outputs: Outputs, calibration: Calibration) -> Scores:
        probabilities, labels = self.probabilities(outputs, calibration)
        members = prediction_set(probabilities, LEVEL, -1, calibration.conformal)
        covered = members.gather(-1, labels.unsqueeze(-1)).float().mean()
        own = super().scores(name, outputs, calibration)
        return replace(own, ece=calibration_error(probabilities, labels), coverage=float(covered))

    def headline(self, outputs: Outputs) -> dict[str, float]:
        probabilities, labels = self.probabilities(outputs, self.blank)
        return {"accuracy": float((probabilities.argmax(-1) == labels).double().mean())}

    def probabilities(self, outputs: Outputs, calibration: Calibration) -> tuple[Tensor, Tensor]:
        """The predictive class probabilities (n, classes), and the labels (n,)."""
        return torch.softmax(outputs[0] / calibration.temperature, -1).mean(0), outputs[1][0]


def _refuse_outside(labels: Tensor, classes: int) -> None:
    if classes < 2:
        raise UsageError("the logits have one class. A sigmoid's logit, a yes or no, is task='binary'")
    if labels.numel() and not (labels.min() >= 0 and labels.max() < classes):
        span = f"from {int(labels.min())} to {int(labels.max())}"
        raise UsageError(f"the labels go {span}, the {classes} classes from 0. Give -100 to what has no label")


def _misfit(logits: torch.Size, dim: int, target: Any) -> str:
    """What is wrong with targets that do not fit the logits, and what may be meant."""
    if not isinstance(target, Tensor):
        return f"the targets must be a tensor of class labels, and are a {type(target).__name__}"
    expected = [*logits[:dim], *logits[dim + 1 :]]
    what = f"the logits {tuple(logits)} need class labels {tuple(expected)} of integers, and got {tuple(target.shape)}"
    others = [at for at in range(1, len(logits)) if target.shape == torch.Size([*logits[:at], *logits[at + 1 :]])]
    if target.shape == logits:
        return (
            f"{what} of {target.dtype}. Where each logit is a yes or no of its own, say task='binary'; of one-hot "
            "targets take the argmax; for soft labels give a loss= of your own"
        )
    if others and not target.is_floating_point():
        return f"{what}. If dimension {others[0]} holds the classes, say dim={others[0]}"
    return f"{what} of {target.dtype}"
