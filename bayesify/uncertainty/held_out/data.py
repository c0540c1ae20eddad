"""Held-out data with targets, and the likelihood that is asked of a model's outputs for them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import UsageError
from ...estimators.precision import widened
from ..calibration import Calibration, Scores
from ..calls import Call, called
from ..outputs import one_tensor
from ..passes import Sampler

LEVEL = 0.9  # of the sets and intervals whose coverage is shown

@dataclass(frozen=True, eq=False)
class Comparison:
    """How well one posterior, or one temperature, predicts the data.

    Attributes:
        nll: the mean NLL of the targets.
        losses: (n,): what is compared: their NLL, or a more cautious measure of the same.
    """

    nll: float
    losses: Tensor


Outputs = list[Tensor]  # (samples, n, ...) from the model, and the targets (1, n, ...) last


@dataclass(frozen=True, eq=False)
class HeldOut(ABC):
    """Data with targets, and the likelihood that is asked of a part of the model's output.

    Attributes:
        batches: calls of the model, each with its targets.
        blank: the task, and which part of the output it is asked of.
    """

    batches: list[tuple[Call, Any]]
    blank: Calibration

    def outputs(self, model: nn.Module, samples: int) -> Outputs:
        """What the likelihood needs of so many draws, all batches together."""
        sampler = Sampler(model, lambda call: self.read(called(model, call)))
        pieces = []
        for call, target in self.batches:
            groups = list(sampler.draws(call, samples))
            leaves = [widened(torch.cat(leaf)) for leaf in zip(*groups, strict=True)]
            for leaf in leaves:
                refuse_not_finite("the model's outputs for the data", leaf.isnan() | leaf.isposinf())
            pieces.append(self.paired(leaves, target))
        outputs = [torch.cat(part, 1) for part in zip(*pieces, strict=True)]
        if not outputs[-1].numel():
            raise UsageError("the data hold no target: no example, or only labels of -100, which stand for none")
        return outputs

    def compared(self, outputs: Outputs) -> Comparison:
        """How good a posterior is, at temperature 1 and with the best noise."""
        losses = self.losses(outputs, self.fit(outputs))
        return Comparison(float(losses.mean()), losses)

    def nll(self, outputs: Outputs) -> float:
        """The mean NLL of the targets, at temperature 1 and with the best noise."""
        return self.compared(outputs).nll

    def scores(self, name: str, outputs: Outputs, calibration: Calibration) -> Scores:
        """How the outputs predict the data under a calibration."""
        return Scores(name, float(self.losses(outputs, calibration).mean()))

    def headline(self, outputs: Outputs) -> dict[str, float]:
        """What people ask of such a prediction first: `accuracy`, or `rmse` in the targets' unit."""
        return {}

    def read(self, output: Any) -> list[Tensor]:
        """The tensors of an output that the likelihood is a function of."""
        return [one_tensor(output, self.blank.output)]

    @abstractmethod
    def paired(self, leaves: list[Tensor], target: Any) -> Outputs:
        """Those tensors of one batch and its targets."""

    @abstractmethod
    def losses(self, outputs: Outputs, calibration: Calibration) -> Tensor:
        """The NLL of each target in nats, of the mixture over draws."""

    @abstractmethod
    def fit(self, outputs: Outputs) -> Calibration:
        """The best calibration at this posterior."""

    def start(self, outputs: Outputs) -> Calibration:
        """What predicts without a calibration."""
        return self.blank


def refuse_not_finite(what: str, wrong: Tensor) -> None:
    """Raise a UsageError where any number is wrong."""
    if wrong.any():
        raise UsageError(f"{int(wrong.sum())} of {wrong.numel()} numbers of {what} are not finite: none to fit to")
