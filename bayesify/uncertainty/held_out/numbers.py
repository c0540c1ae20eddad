"""Regression: numbers, the observation noise around them, and intervals."""

from __future__ import annotations

import math
from dataclasses import replace
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor

from ...errors import UsageError
from ..calibration import Calibration, Scores
from ..conformal import Conformal
from ..likelihoods import golden_minimum, mixture_nll, normal_log_likelihoods, variance_of
from ..observation_noise import split_noise
from ..outputs import one_tensor
from .data import LEVEL, HeldOut, Outputs, refuse_not_finite

_NOISE_RATIO = 1e4  # how far from the residuals' own size the noise's std is looked for


class Numbers(HeldOut):
    """Regression: means, log-variances where the model predicts them, and targets."""

    def read(self, output: Any) -> list[Tensor]:
        place = self.blank.noise if isinstance(self.blank.noise, str) else None
        mean, log_variance = split_noise(output, place, self.blank.output, self.blank.dim)
        return [one_tensor(mean, None)] if log_variance is None else [mean, log_variance]

    def paired(self, leaves: list[Tensor], target: Any) -> Outputs:
        shape = leaves[0].shape[1:]
        if isinstance(target, Tensor) and target.dim() == len(shape) - 1 and shape[-1] == 1:
            target = target.unsqueeze(-1)
        if not isinstance(target, Tensor) or target.shape != shape:
            what = tuple(target.shape) if isinstance(target, Tensor) else type(target).__name__
            raise UsageError(
                f"the output {tuple(shape)} needs targets of its shape, and got {what}. Where the model predicts mean "
                "and log-variance, say where: noise='halves', a key or a place"
            )
        refuse_not_finite("the targets", ~target.isfinite())
        columns = shape[-1] if len(shape) == 2 else 1
        return [leaf.reshape(len(leaf), -1, columns) for leaf in (*leaves, target.to(leaves[0].dtype).unsqueeze(0))]

    def losses(self, outputs: Outputs, calibration: Calibration) -> Tensor:
        mean, *_, target = outputs
        return mixture_nll(normal_log_likelihoods(mean, self.variance(outputs, calibration), target))

    def start(self, outputs: Outputs) -> Calibration:
        return self.blank if self.blank.noise is not None else self.fit(outputs)

    def fit(self, outputs: Outputs) -> Calibration:
        mean, *predicted, target = outputs
        predicted_variance = variance_of(predicted[0]) if predicted else torch.ones_like(mean[:1])
        around = ((mean - target).square() / predicted_variance).mean((0, 1)).clamp_min(1e-30).log()
        reach = 2 * math.log(_NOISE_RATIO)
        around = around.mean().expand(1) if predicted else around

        def loss(log_variance: Tensor) -> Tensor:
            variance = predicted_variance * log_variance.exp()
            losses = mixture_nll(normal_log_likelihoods(mean, variance, target)).mean(0)
            return losses.mean().expand(1) if predicted else losses

        factor = golden_minimum(loss, around - reach, around + math.log(4.0)).exp()
        best = replace(self.blank, noise_factor=float(factor)) if predicted else self._with_std(factor.sqrt())
        if predicted:
            best = min(best, self.blank, key=lambda one: float(self.losses(outputs, one).mean()))
        score = self.distance(outputs, best)
        return replace(best, conformal=Conformal.of(score))

    def scores(self, name: str, outputs: Outputs, calibration: Calibration) -> Scores:
        bound = NormalDist().inv_cdf((1 + LEVEL) / 2)
        if calibration.conformal is not None:
            bound = calibration.conformal.bound(LEVEL)
        covered = (self.distance(outputs, calibration) <= bound).float().mean()
        return replace(super().scores(name, outputs, calibration), coverage=float(covered))

    def headline(self, outputs: Outputs) -> dict[str, float]:
        mean, *_, target = outputs
        return {"rmse": float((mean.mean(0) - target[0]).square().mean().sqrt())}

    def _with_std(self, stds: Tensor) -> Calibration:
        values = tuple(stds.tolist())
        return replace(self.blank, noise=values[0] if len(values) == 1 else values)

    def variance(self, outputs: Outputs, calibration: Calibration) -> Tensor:
        """The observation noise's variance: (draws or 1, n, columns)."""
        mean, *predicted, _ = outputs
        if predicted:
            return variance_of(predicted[0]) * calibration.noise_factor
        return torch.as_tensor(calibration.noise, dtype=mean.dtype, device=mean.device).square().expand_as(mean[:1])

    def distance(self, outputs: Outputs, calibration: Calibration) -> Tensor:
        """How many predictive stds each target is from the predictive mean."""
        mean, *_, target = outputs
        total = self.variance(outputs, calibration).mean(0)
        total = total + mean.var(0) if len(mean) > 1 else total
        return (target[0] - mean.mean(0)).abs() / total.sqrt()
