"""Binary targets: logits of sigmoids, each with a target of its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...errors import UsageError
from ..prediction import two_logits
from .class_labels import IGNORED, Labels
from .data import Outputs


class YesOrNo(Labels):
    """One logit, or one for each of several labels that do not exclude each other."""

    def read(self, output: Any) -> list[Tensor]:
        return [two_logits(logit) for logit in super().read(output)]

    def paired(self, leaves: list[Tensor], target: Any) -> Outputs:
        return super().paired(leaves, _labels(target, leaves[0].shape[1:-1]))

    def counted(self, logits: Tensor, target: Tensor) -> Tensor:
        return (target if target.dim() == logits.dim() else target.unsqueeze(-1)) != IGNORED


def _labels(target: Any, shape: torch.Size) -> Tensor:
    if isinstance(target, Tensor) and target.dim() == len(shape) - 1 and shape[-1] == 1:
        target = target.unsqueeze(-1)
    if not isinstance(target, Tensor) or target.shape != shape:
        what = tuple(target.shape) if isinstance(target, Tensor) else type(target).__name__
        raise UsageError(f"task='binary': the logits {tuple(shape)} need targets of their shape, and got {what}")
    labels = target.long()
    known = (labels == 0) | (labels == 1) | (labels == IGNORED)
    if not (known & (labels == target)).all():
        raise UsageError("task='binary' needs targets 0 or 1 (-100 for none). For soft ones give a loss=")
    return labels
