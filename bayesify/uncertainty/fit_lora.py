"""`fit_lora`: a posterior for trained LoRA adapters, without training (Shi et al. 2024, training-free Bayesianization).

An adapter computes B A x. With B = U d Vᵀ (its singular values), B' = U d and A' = Vᵀ A compute the same. The rows of
A' get the stds σ/dᵢ: noise of one size in all directions of the output that the adapter can move, none in others.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UsageError
from ..nn.kl import variational_layers
from ..nn.posterior_mean import posterior_mean
from ..surgery.reset import refuse_lazy
from .calibration import Calibration
from .held_out import HeldOut, Loss, held_out
from .passes import undisturbed
from .prediction import Task
from .seeds import seeded

SMALLEST = 1e-3  # of the largest singular value: what lies below is treated as if it lay there
_SIGMAS = (1e-6, 1e2)
_HALVINGS = 20


@dataclass(frozen=True)
class FittedLora:
    """What `fit_lora` found.

    Attributes:
        sigma: the std along each direction of the adapters' outputs, for inputs of length 1.
        adapters: how many got it.
        nll_before, nll: mean NLL of the data in nats, without noise and with it.
    """

    sigma: float
    adapters: int
    nll_before: float
    nll: float


def fit_lora(
    model: nn.Module, loader: Iterable[Any], *, task: Task | None = None, loss: Loss | None = None,
    output: str | int | None = None, dim: int = -1, tolerance: float = 0.003, samples: int = 10, seed: int = 0,
) -> FittedLora:  # fmt: skip
    """Fit the stds of a LoRA model that was trained and then converted (policy `lora`), by forward passes only.

    Rewrites each adapter's two matrices; what they compute together stays as it was to rounding. σ is the largest one,
    by bisection, whose NLL is worse by no more than `tolerance` of the NLL without noise.

    Args:
        loader, task, loss, output, dim, samples, seed: as in `calibrate`. Training data do.

    Raises:
        NotVariationalError, UninitializedLayerError: as in `calibrate`.
        UsageError: no adapter is variational, or one is zero: it was not trained.
    """
    refuse_lazy(model, "there is no noise to fit")
    adapters = [_Adapter.of(model, name, layer) for name, layer in variational_layers(model) if "lora_A" in name]
    if not adapters:
        what = f"{type(model).__name__} has no variational lora_A"
        raise UsageError(f"{what}: bayesify.convert(peft_model, 'lora') first")
    with undisturbed(model, seed):
        data = held_out(model, loader, Calibration(task, output=output, dim=dim), loss)
        with posterior_mean(model):
            before = data.nll(data.outputs(model, 1))
        for adapter in adapters:
            adapter.rotate()
        sigma, nll = _largest(model, data, adapters, before + tolerance * abs(before), samples, seed)
    return FittedLora(sigma, len(adapters), before, nll)


@dataclass(frozen=True, eq=False)
class _Adapter:
    first: Any  # lora_A, variational
    second: Any  # lora_B
    values: Tensor  # the singular values of B

    @classmethod
    def of(cls, model: nn.Module, name: str, first: Any) -> _Adapter:
        second: Any = model.get_submodule(name.replace("lora_A", "lora_B"))
        values = torch.linalg.svdvals(second.weight.detach().float().flatten(1))
        if not values.max() > 0:
            raise UsageError(f"{name.replace('lora_A', 'lora_B')} is zero: train the adapters first")
        return cls(first, second, values)

    def rotate(self) -> None:
        b, a = self.second.weight, self.first.weight
        u, values, vt = torch.linalg.svd(b.detach().double().flatten(1), full_matrices=False)
        b.data.copy_((u * values).view_as(b))
        a.data.copy_((vt @ a.detach().double().flatten(1)).view_as(a))

    def set_sigma(self, sigma: float) -> None:
        stds = sigma / self.values.clamp_min(SMALLEST * float(self.values.max()))
        weight = self.first.weight
        self.first.set_std("weight", stds.view(-1, *[1] * (weight.dim() - 1)).expand_as(weight))
        if hasattr(self.second, "set_std"):
            self.second.set_std("weight", 0.0)


def _largest(
    model: nn.Module, data: HeldOut, adapters: list[_Adapter], bound: float, samples: int, seed: int
) -> tuple[float, float]:
    """The largest σ whose NLL is within the bound, and that NLL."""

    def nll(log_sigma: float) -> float:
        for adapter in adapters:
            adapter.set_sigma(math.exp(log_sigma))
        with seeded(model, seed):
            return data.nll(data.outputs(model, samples))

    low, high = (math.log(sigma) for sigma in _SIGMAS)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if nll(middle) <= bound else (low, middle)
    return math.exp(low), nll(low)
