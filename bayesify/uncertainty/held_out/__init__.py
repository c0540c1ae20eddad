"""Held-out data with targets, and what a likelihood makes of a model's outputs for them: one file for each task."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ...nn.posterior_mean import posterior_mean
from ..calibration import Calibration
from ..calls import Call
from ..observation_noise import HALVES
from ..outputs import one_tensor
from ..targets import labelled_calls
from .class_labels import Labels
from .data import Comparison, HeldOut, Outputs
from .numbers import Numbers
from .own_loss import Loss, OwnLoss
from .yes_or_no import YesOrNo

__all__ = ["Comparison", "HeldOut", "Labels", "Loss", "Numbers", "Outputs", "OwnLoss", "YesOrNo", "held_out"]


def held_out(model: nn.Module, loader: Iterable[Any], blank: Calibration, loss: Loss | None) -> HeldOut:
    """The loader's data, on the model's device.

    Raises:
        UsageError: the loader is empty, or its batches hold no targets.
    """
    batches = labelled_calls(model, loader)
    if loss is not None:
        return OwnLoss(batches, blank, loss)
    if blank.task == "classification":
        return Labels(batches, blank)
    if blank.task == "binary":
        return YesOrNo(batches, blank)
    if blank.noise is None and _twice_as_wide(model, batches[0], blank):
        blank = replace(blank, noise=HALVES)
    return Numbers(batches, blank)


def _twice_as_wide(model: nn.Module, batch: tuple[Call, Any], blank: Calibration) -> bool:
    """Whether the output has a mean and a log-variance for each target, one half of `dim` each."""
    call, target = batch
    with torch.no_grad(), posterior_mean(model):
        output = one_tensor(model(*call.args, **call.kwargs), blank.output)
    if not isinstance(target, Tensor) or not output.dim():
        return False
    return output.numel() == 2 * target.numel() and output.shape[blank.dim] % 2 == 0
