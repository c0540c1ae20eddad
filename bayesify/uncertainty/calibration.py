"""What was fitted to a model's predictions on held-out data, and where the model keeps it."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn

from ..errors import FileRefusedError
from ..files.untrusted.records import wrong_field
from .conformal import Conformal
from .prediction import Task, each_tensor

KEPT_AS = "_calibration"  # the attribute of the model that holds it


@dataclass(frozen=True)
class Scores:
    """How a model predicts the calibration data.

    Attributes:
        name: of what predicts.
        nll: mean negative log-likelihood in nats, of the mixture over draws.
        ece: classification: the expected calibration error over 15 bins of equally many examples. Else None.
        coverage: the share of targets in the 90 % set or interval. None where a loss of the user's own is fitted to.
    """

    name: str
    nll: float
    ece: float | None = None
    coverage: float | None = None

    def cells(self) -> list[str]:
        """As a line of the table."""
        return [self.name, *("" if value is None else f"{value:.4f}" for value in (self.nll, self.ece, self.coverage))]


@dataclass(frozen=True)
class Calibration:
    """What `calibrate` fitted. Plain data, that the model carries through deepcopy, pickle and `save`.

    Attributes:
        task: the task that it is for; None where a loss of the user's own was fitted to.
        std_factor: what all posterior stds were multiplied by; they are so already.
        temperature: what `predict` divides logits by.
        noise: regression: the std of the observation noise, one number or one for each column of the output; or, where
            the model predicts a log-variance, where that lies, as `predict(noise=)` says it.
        noise_factor: what `predict` multiplies a predicted variance by.
        conformal: what `Prediction.set` and `Prediction.interval` take their size from.
        output, dim: the part of the output that was calibrated, and its dimension of the classes.
        scores: on the calibration data: the mean network, the same with its own temperature or noise, and the model
            before and after.
    """

    task: Task | None
    std_factor: float = 1.0
    temperature: float = 1.0
    noise: float | str | tuple[float, ...] | None = None
    noise_factor: float = 1.0
    conformal: Conformal | None = None
    output: str | int | None = None
    dim: int = -1
    scores: tuple[Scores, ...] = ()

    @property
    def helps(self) -> bool:
        """Whether the posterior's noise predicts the calibration data better than its mean, both calibrated."""
        return self.scores[3].nll < self.scores[1].nll

    def fits(self, task: Task | None, output: str | int | None, dim: int, noise: Any) -> bool:
        """Whether it was fitted to what is predicted now; an observation noise of the caller's own is another one."""
        same_noise = noise is None or (isinstance(noise, str) and noise == self.noise)
        return task is not None and same_noise and (self.task, self.output, self.dim) == (task, output, dim)

    def applied(self, part: Any, log_variance: Tensor | None) -> tuple[Any, Tensor | None]:
        """An output's part over the temperature, and the log-variance with its factor."""
        if self.temperature != 1:
            part = each_tensor(lambda logits: logits / self.temperature, part)
        if log_variance is not None and self.noise_factor != 1:
            log_variance = log_variance + math.log(self.noise_factor)
        return part, log_variance

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain data; of the conformal scores their number."""
        conformal = None if self.conformal is None else self.conformal.count
        return {**asdict(self), "conformal": conformal, "helps": self.helps}

    def __repr__(self) -> str:
        rows = [["", "NLL", "ECE", "coverage"], *(score.cells() for score in self.scores)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(map(_padded, row, widths, (False, True, True, True))).rstrip() for row in rows]
        verdict = [] if self.helps else ["The noise does not help here: its mean network predicts as well without it."]
        return "\n".join([self._summary(), "", *lines, *verdict])

    def _summary(self) -> str:
        parts = [f"posterior std × {self.std_factor:.3g}"]
        if self.task in ("classification", "binary"):
            parts.append(f"temperature {self.temperature:.3g}")
        if isinstance(self.noise, str):
            parts.append(f"predicted noise variance × {self.noise_factor:.3g}")
        elif self.noise is not None:
            stds = self.noise if isinstance(self.noise, tuple) else (self.noise,)
            parts.append("noise std " + ", ".join(f"{std:.3g}" for std in stds[:6]) + (", …" if len(stds) > 6 else ""))
        return f"Calibration ({self.task or 'own loss'}): " + ", ".join(parts)


def _padded(cell: str, width: int, right: bool) -> str:
    return f"{cell:>{width}}" if right else f"{cell:{width}}"


def stored_calibration(model: nn.Module) -> Calibration | None:
    """What was fitted to the model's predictions, or None where nothing was.

    Raises:
        FileRefusedError: it came with the model out of a file, and cannot be.
    """
    kept = vars(innermost(model)).get(KEPT_AS)
    if kept is None:
        return None
    try:
        conformal = None if kept["conformal"] is None else Conformal(**kept["conformal"])
        scores = tuple(Scores(**score) for score in kept["scores"])
        read = Calibration(**{**kept, "conformal": conformal, "scores": scores})
        right = len(scores) == 4 and not any(map(wrong_field, filter(None, (read, conformal, *scores))))
    except (TypeError, KeyError):
        right = False
    if not right:
        raise FileRefusedError("the model's calibration is damaged; calibrate it again")
    return read


def store_calibration(model: nn.Module, calibration: Calibration | None) -> None:
    """Keep what was fitted with the model, or forget it: in plain dicts, which any reader of the saved model knows."""
    vars(innermost(model)).pop(KEPT_AS, None)
    if calibration is not None:
        setattr(innermost(model), KEPT_AS, asdict(calibration))


def innermost(model: nn.Module) -> nn.Module:
    """The model inside of torch.compile's or DataParallel's wrapper."""
    while isinstance(inner := getattr(model, "_orig_mod", None) or _parallel(model), nn.Module):
        model = inner
    return model


def _parallel(model: nn.Module) -> Any:
    return model.module if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel) else None
