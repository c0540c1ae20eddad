"""A likelihood of the user's own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import UsageError
from ...estimators.precision import widened
from ..calibration import Calibration
from ..calls import called
from ..likelihoods import mixture_nll
from .data import HeldOut, Outputs

Loss = Callable[[Any, Any], Tensor]


@dataclass(frozen=True, eq=False)
class OwnLoss(HeldOut):
    """A likelihood of the user's own, as a function of the whole output and the targets."""

    loss: Loss

    def outputs(self, model: nn.Module, samples: int) -> Outputs:
        batches = []
        for call, target in self.batches:
            draws = [self.loss(called(model, call), target) for _ in range(samples)]
            if not isinstance(draws[0], Tensor) or draws[0].dim() == 0:
                raise UsageError("loss(output, target) must return one value for each example: reduction='none'")
            batches.append(widened(torch.stack(draws)).flatten(1))
        return [torch.cat(batches, 1)]

    def paired(self, leaves: list[Tensor], target: Any) -> Outputs:
        raise AssertionError("a loss of the user's own takes the whole output")

    def losses(self, outputs: Outputs, calibration: Calibration) -> Tensor:
        return mixture_nll(-outputs[0])

    def fit(self, outputs: Outputs) -> Calibration:
        return self.blank
