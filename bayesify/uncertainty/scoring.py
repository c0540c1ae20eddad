"""How well a model predicts held-out data at the moment: one number or two, to compare before and after a change."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..errors import UsageError
from .calibration import Calibration, stored_calibration
from .held_out import HeldOut, held_out
from .passes import undisturbed
from .prediction import TASKS, Task


@dataclass(frozen=True)
class Score:
    """How a model predicts.

    Attributes:
        name: of what predicts.
        nll: mean negative log-likelihood in nats, of the mixture over draws.
        accuracy: classification: the share of labels that are the most probable class. Else None.
        rmse: regression: the root mean square error, in the targets' unit. Else None.
    """

    name: str
    nll: float
    accuracy: float | None = None
    rmse: float | None = None


@dataclass(frozen=True, eq=False)
class Scoring:
    """Held-out data, and how they are predicted: under the calibration that the model keeps, if it fits."""

    data: HeldOut
    calibration: Calibration | None
    samples: int
    seed: int

    def score(self, model: nn.Module, name: str) -> Score:
        """The model's score as it is now; every call draws the same random numbers."""
        with undisturbed(model, self.seed):
            outputs = self.data.outputs(model, self.samples)
        nll = self.data.losses(outputs, self.calibration or self.data.start(outputs)).mean()
        return Score(name, float(nll), **self.data.headline(outputs))


def scoring_of(
    model: nn.Module, loader: Iterable[Any], task: Task | None = None, *, noise: str | None = None,
    output: str | int | None = None, dim: int = -1, samples: int = 16, seed: int = 0,
) -> Scoring:  # fmt: skip
    """The loader's data. Without a task, that which the model is calibrated for, and the part of the output.

    Raises:
        UsageError: no task is given and the model is not calibrated; or the data do not fit.
    """
    stored = stored_calibration(model)
    if task is None:
        if stored is None or stored.task is None:
            raise UsageError(f"the loader's targets need a task: {', '.join(TASKS)}")
        task, output, dim = stored.task, stored.output, stored.dim
        noise = stored.noise if isinstance(stored.noise, str) else None
    if task not in TASKS:
        raise UsageError(f"task={task!r} is none of {', '.join(TASKS)}")
    with undisturbed(model, seed):
        data = held_out(model, loader, Calibration(task, noise=noise, output=output, dim=dim), None)
    fits = stored is not None and stored.fits(task, output, dim, noise)
    return Scoring(data, stored if fits else None, samples, seed)
