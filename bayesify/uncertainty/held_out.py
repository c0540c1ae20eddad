"""Held-out data with targets, and what a likelihood makes of a model's outputs for them."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UsageError
from ..estimators.precision import widened
from ..nn.posterior_mean import posterior_mean
from .calibration import Calibration, Scores
from .calls import Call
from .conformal import Conformal, mass_before
from .likelihoods import (
    as_good,
    calibration_error,
    class_log_likelihoods,
    golden_minimum,
    mixture_nll,
    normal_log_likelihoods,
)
from .observation_noise import HALVES, split_noise
from .outputs import picked
from .passes import Sampler
from .prediction import prediction_set
from .targets import labelled_calls

Loss = Callable[[Any, Any], Tensor]
LEVEL = 0.9  # of the sets and intervals whose coverage is shown
_IGNORED = -100  # torch's label for what has none
_TEMPERATURES = (0.02, 50.0)
_HALVINGS = 20  # of the interval above the best temperature
_NOISE_RATIO = 1e4  # how far from the residuals' own size the noise's std is looked for

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
        sampler = Sampler(model, lambda call: self.read(model(*call.args, **call.kwargs)))
        pieces = []
        for call, target in self.batches:
            groups = list(sampler.draws(call, samples))
            leaves = [widened(torch.cat(leaf)) for leaf in zip(*groups, strict=True)]
            pieces.append(self.paired(leaves, target))
        return [torch.cat(part, 1) for part in zip(*pieces, strict=True)]

    def compared(self, outputs: Outputs) -> Tensor:
        """The NLL of each target, by which posteriors are compared: at temperature 1, with the best noise."""
        return self.losses(outputs, self.fit(outputs))

    def nll(self, outputs: Outputs) -> float:
        """The mean of `compared`."""
        return float(self.compared(outputs).mean())

    def scores(self, name: str, outputs: Outputs, calibration: Calibration) -> Scores:
        """How the outputs predict the data under a calibration."""
        return Scores(name, float(self.losses(outputs, calibration).mean()))

    def headline(self, outputs: Outputs) -> dict[str, float]:
        """What people ask of such a prediction first: `accuracy`, or `rmse` in the targets' unit."""
        return {}

    def read(self, output: Any) -> list[Tensor]:
        """The tensors of an output that the likelihood is a function of."""
        part = picked(output, self.blank.output)
        if not isinstance(part, Tensor):
            raise UsageError(f"the output is a {type(part).__name__}: name the tensor to calibrate by output=")
        return [part]

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
            what = f"{tuple(target.shape)} of {target.dtype}" if isinstance(target, Tensor) else type(target).__name__
            raise UsageError(f"the logits need class labels {tuple(logits.shape[1:-1])} of integers, and got {what}")
        labelled = target.flatten() != _IGNORED
        return [logits.flatten(1, -2)[:, labelled], target.flatten()[labelled].long().unsqueeze(0)]

    def losses(self, outputs: Outputs, calibration: Calibration) -> Tensor:
        logits, labels = outputs
        return mixture_nll(class_log_likelihoods(logits, labels, calibration.temperature))

    def compared(self, outputs: Outputs) -> Tensor:
        return self.losses(outputs, self.blank)

    def fit(self, outputs: Outputs) -> Calibration:
        best = replace(self.blank, temperature=self._temperature(outputs))
        probabilities, labels = self.probabilities(outputs, best)
        mass = mass_before(probabilities, -1)
        return replace(best, conformal=Conformal.of(mass.gather(-1, labels.unsqueeze(-1))))

    def _temperature(self, outputs: Outputs) -> float:
        """The highest one that predicts as well as the best, and no worse than 1 does (see `as_good`)."""

        def losses(log_temperature: Tensor) -> Tensor:
            return self.losses(outputs, replace(self.blank, temperature=float(log_temperature.exp())))

        low, high = (torch.tensor(math.log(value), dtype=torch.float64) for value in _TEMPERATURES)
        best = golden_minimum(lambda log_temperature: losses(log_temperature).mean(), low, high)
        of_one, of_best = losses(torch.zeros(())), losses(best)
        if of_best.mean() >= of_one.mean():
            return 1.0
        for _ in range(_HALVINGS):
            middle = (best + high) / 2
            best, high = (middle, high) if as_good(losses(middle), of_best, of_one) else (best, middle)
        return float(best.exp())

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


class Numbers(HeldOut):
    """Regression: means, log-variances where the model predicts them, and targets."""

    def read(self, output: Any) -> list[Tensor]:
        place = self.blank.noise if isinstance(self.blank.noise, str) else None
        mean, log_variance = split_noise(output, place, self.blank.output, self.blank.dim)
        if not isinstance(mean, Tensor):
            raise UsageError(f"the output is a {type(mean).__name__}: name the tensor to calibrate by output=")
        return [mean] if log_variance is None else [mean, log_variance]

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
        columns = shape[-1] if len(shape) == 2 else 1
        return [leaf.reshape(len(leaf), -1, columns) for leaf in (*leaves, target.to(leaves[0].dtype).unsqueeze(0))]

    def losses(self, outputs: Outputs, calibration: Calibration) -> Tensor:
        mean, *_, target = outputs
        return mixture_nll(normal_log_likelihoods(mean, self.variance(outputs, calibration), target))

    def start(self, outputs: Outputs) -> Calibration:
        return self.blank if self.blank.noise is not None else self.fit(outputs)

    def fit(self, outputs: Outputs) -> Calibration:
        mean, *predicted, target = outputs
        predicted_variance = predicted[0].exp() if predicted else torch.ones_like(mean[:1])
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
            return predicted[0].exp() * calibration.noise_factor
        return torch.as_tensor(calibration.noise, dtype=mean.dtype, device=mean.device).square().expand_as(mean[:1])

    def distance(self, outputs: Outputs, calibration: Calibration) -> Tensor:
        """How many predictive stds each target is from the predictive mean."""
        mean, *_, target = outputs
        total = self.variance(outputs, calibration).mean(0)
        total = total + mean.var(0) if len(mean) > 1 else total
        return (target[0] - mean.mean(0)).abs() / total.sqrt()


@dataclass(frozen=True, eq=False)
class OwnLoss(HeldOut):
    """A likelihood of the user's own, as a function of the whole output and the targets."""

    loss: Loss

    def outputs(self, model: nn.Module, samples: int) -> Outputs:
        batches = []
        for call, target in self.batches:
            draws = [self.loss(model(*call.args, **call.kwargs), target) for _ in range(samples)]
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
    if blank.noise is None and _twice_as_wide(model, batches[0], blank):
        blank = replace(blank, noise=HALVES)
    return Numbers(batches, blank)


def _twice_as_wide(model: nn.Module, batch: tuple[Call, Any], blank: Calibration) -> bool:
    """Whether the output has a mean and a log-variance for each target, one half of `dim` each."""
    call, target = batch
    with torch.no_grad(), posterior_mean(model):
        output = picked(model(*call.args, **call.kwargs), blank.output)
    if not isinstance(output, Tensor) or not isinstance(target, Tensor) or not output.dim():
        return False
    return output.numel() == 2 * target.numel() and output.shape[blank.dim] % 2 == 0
