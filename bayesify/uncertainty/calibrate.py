"""`calibrate`: how much noise, which temperature and which observation noise predict held-out data best.

Forward passes only. First one factor for all posterior stds, at temperature 1; only then a temperature at that factor:
fitted together, the temperature takes over and silences the posterior.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..distributions.posterior import SMALLEST_STD
from ..errors import UsageError, did_you_mean
from ..nn.base import Variational
from ..nn.kl import terms
from ..nn.posterior_mean import posterior_mean
from ..surgery.reset import refuse_lazy
from .calibration import Calibration, store_calibration
from .held_out import Comparison, HeldOut, Loss, Outputs, held_out
from .likelihoods import as_good
from .passes import undisturbed
from .prediction import TASKS, Task
from .seeds import seeded

FACTORS = tuple(2.0 ** (step / 2) for step in range(-8, 5))  # 1/16 to 4



@dataclass(frozen=True, eq=False)
class Std:
    """One posterior's std, and the scale parameter that gives it, as they were."""

    value: Tensor
    scale: Tensor
    scale_before: Tensor
    layer: Variational
    name: str


def calibrate(
    model: nn.Module, loader: Iterable[Any], *, task: Task | None = None, loss: Loss | None = None,
    noise: str | None = None, output: str | int | None = None, dim: int = -1, samples: int = 16, seed: int = 0,
) -> Calibration:  # fmt: skip
    """Fit how a converted model predicts to held-out data, by forward passes only; `predict` applies what was fitted.

    One factor for all posterior stds, of 13 from 1/16 to 4, by the NLL of the mixture over draws, each with the same
    random numbers; then, for classification, a temperature. Of both the highest within one standard error of the best.
    For regression the observation noise, fitted for each factor. The NLL of these data is never worse than before. They
    also size `Prediction.set` and `interval` (see `conformal.py`). Calibrate after training. Memory: a few times
    samples × targets × classes floats, so of a large vocabulary give few tokens.

    Args:
        loader: batches (inputs..., target), or mappings with one of the keys of `LABELS`. Labels of -100 are left out.
        task: "classification" of logits along `dim`; "binary": sigmoids' logits with targets 0 or 1, as those of
            BCEWithLogitsLoss; or "regression".
        loss: instead of a task: (output, target) → the NLL of each example, (n,). Only the factor is fitted to it.
        noise: where a regression has its log-variance, as in `predict`; "halves" if the output is twice the target.
        output, dim, samples, seed: as in `predict`.

    Returns: what was fitted; the model keeps it, and it prints as a table.

    Raises:
        NotVariationalError: the model has no variational layer.
        UninitializedLayerError: a lazy layer has not seen data.
        UsageError: arguments or data do not fit, or a likelihood is not finite.
    """
    _refuse_wrong(task, loss, samples)
    refuse_lazy(model, "there is no noise to calibrate")
    stds = posterior_stds(model)
    try:
        with undisturbed(model, seed):
            data = held_out(model, loader, Calibration(task, noise=noise, output=output, dim=dim), loss)
            fitted = _fitted(model, data, stds, samples, seed)
    except BaseException:
        scale_posterior(stds, 1.0)
        raise
    scale_posterior(stds, fitted.std_factor)
    store_calibration(model, fitted)
    return fitted


def _fitted(model: nn.Module, data: HeldOut, stds: list[Std], samples: int, seed: int) -> Calibration:
    def draws(factor: float) -> Outputs:
        scale_posterior(stds, factor)
        with seeded(model, seed):
            return data.outputs(model, samples)

    with posterior_mean(model):
        mean = data.outputs(model, 1)
    _refuse_infinite(data.nll(mean))
    before = draws(1.0)
    tried = {factor: data.compared(before if factor == 1 else draws(factor)) for factor in FACTORS}
    _refuse_infinite(*(one.nll for one in tried.values()))
    factor = _factor(tried)
    after = before if factor == 1 else draws(factor)
    fitted = replace(data.fit(after), std_factor=factor)
    scores = (
        data.scores("mean network", mean, data.start(mean)),
        data.scores("mean network, calibrated", mean, data.fit(mean)),
        data.scores("before", before, data.start(before)),
        data.scores("after", after, fitted),
    )
    return replace(fitted, scores=scores)


def _factor(tried: dict[float, Comparison]) -> float:
    """The largest factor that predicts as well as the best, of those that are no worse than 1 is."""
    no_worse = {factor: one for factor, one in tried.items() if one.nll <= tried[1.0].nll}
    best = min(no_worse.values(), key=lambda one: float(one.losses.mean()))
    return max(factor for factor, one in no_worse.items() if as_good(one.losses, best.losses))


def _refuse_infinite(*nlls: float) -> None:
    wrong = [nll for nll in nlls if not math.isfinite(nll)]
    if wrong:
        raise UsageError(f"the NLL of the calibration data is {wrong[0]}: outputs or targets are not finite")


@torch.no_grad()
def posterior_stds(model: nn.Module) -> list[Std]:
    """The std of every posterior, once each."""
    stds = []
    for term in terms(model):
        layer, name = term.layers[0], term.mean_name
        scale = layer.scale_of(name)
        assert scale is not None
        stds.append(Std(layer.std_of(name).clone(), scale, scale.detach().clone(), layer, name))
    return stds


@torch.no_grad()
def scale_posterior(stds: list[Std], factor: float) -> None:
    """Give every posterior so many times these stds; with 1 they are what they were, bit by bit."""
    for std in stds:
        if factor == 1:
            std.scale.copy_(std.scale_before)
        else:
            std.layer.set_std(std.name, (std.value * factor).clamp_min(SMALLEST_STD))  # zero where pruning masks it


def _refuse_wrong(task: Task | None, loss: Callable[..., Any] | None, samples: int) -> None:
    if samples < 2:
        raise UsageError(f"samples={samples}: the mixture over draws needs 2 at least")
    if loss is not None and task is not None:
        raise UsageError("task= brings its own likelihood: give task= or loss=, not both")
    if loss is None and task not in TASKS:
        near = did_you_mean(str(task), TASKS)
        raise UsageError(f"task={task!r} is none of {', '.join(TASKS)}, and there is no loss=.{near}")
