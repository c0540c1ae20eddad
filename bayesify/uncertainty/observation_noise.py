"""The noise of a regression's observations: a std that is given, or a log-variance that the model predicts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..errors import UsageError
from .calibration import Calibration
from .outputs import one_tensor, picked
from .prediction import Prediction, Task, each_tensor

HALVES = "halves"
Noise = float | Tensor | str | None


def settled_noise(task: Task | None, noise: Noise, fitted: Calibration | None) -> Noise:
    """The noise to predict with: as given, or as it was fitted to the model.

    Raises:
        UsageError: a regression without noise, noise without a regression, or a std that is not positive.
    """
    if task != "regression":
        if noise is not None:
            raise UsageError(f"noise= is the observation noise of task='regression', and task is {task!r}")
        return None
    if noise is None and fitted is not None:
        noise = torch.tensor(fitted.noise) if isinstance(fitted.noise, tuple) else fitted.noise
    if noise is None:
        raise UsageError(
            "a regression's uncertainty needs its observation noise: noise=std, a number or a tensor in the output's "
            "unit; noise='log_var', the part of the output that has the log-variance; noise='halves' where the output "
            "is mean and log-variance along dim; or let bayesify.calibrate fit it. Without noise, task=None gives the "
            "spread of the model alone"
        )
    if isinstance(noise, str):
        return noise
    std = torch.as_tensor(noise)
    if not (std.isfinite() & (std >= 0)).all():
        raise UsageError(f"noise={noise} is not a std: finite numbers that are not negative")
    return noise


def split_noise(output: Any, noise: Noise, name: str | int | None, dim: int) -> tuple[Any, Tensor | None]:
    """What is measured of a model's output, and the log-variance around it where the model predicts that.

    Raises:
        UsageError: the output has no such part, or cannot be halved.
    """
    if not isinstance(noise, str):
        return picked(output, name), None
    if noise == HALVES:
        both = one_tensor(output, name)
        if not -both.dim() <= dim < both.dim() or both.shape[dim] % 2:
            raise UsageError(f"noise='halves' needs an even size along dim={dim}, and got {tuple(both.shape)}")
        mean, log_variance = both.chunk(2, dim)
        return mean, log_variance
    place = int(noise) if noise.lstrip("-").isdigit() else noise
    log_variance = picked(output, place)
    mean = picked(output, name) if name is not None else _other(output, log_variance)
    if not isinstance(mean, Tensor) or not isinstance(log_variance, Tensor):
        raise UsageError(f"noise={noise!r}: mean and log-variance must be tensors; name the mean by output=")
    if mean.shape != log_variance.shape:
        shapes = f"{tuple(log_variance.shape)} and the mean {tuple(mean.shape)}"
        raise UsageError(f"noise={noise!r}: the log-variance is {shapes}, and they must have one shape")
    return mean, log_variance


def with_noise(prediction: Prediction, noise: Noise) -> Prediction:
    """The same prediction, around it observation noise of a given std."""
    if noise is None or isinstance(noise, str):
        return prediction

    def aleatoric(mean: Tensor) -> Tensor:
        variance = torch.as_tensor(noise, dtype=mean.dtype, device=mean.device).square()
        try:
            return variance.expand_as(mean).clone()
        except RuntimeError:
            shapes = f"{tuple(variance.shape)}, which does not broadcast to the output's {tuple(mean.shape)}"
            raise UsageError(f"noise has shape {shapes}") from None

    known = each_tensor(aleatoric, prediction.mean)
    total = each_tensor(torch.add, known, prediction.epistemic)
    return replace(prediction, total=total, aleatoric=known, std=each_tensor(torch.sqrt, total))


def _other(output: Any, log_variance: Any) -> Any:
    """Of a pair of outputs the one that is not the log-variance."""
    parts = list(output.values()) if hasattr(output, "values") else list(output)
    others = [part for part in parts if part is not log_variance]
    if len(others) != 1:
        raise UsageError(f"the output has {len(parts)} parts: name that of the mean by output=")
    return others[0]
