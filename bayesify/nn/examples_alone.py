"""Predictions: no one compares the examples of a batch, so that a layer may draw for each by itself, and several draws.

The outputs of a Linear for one vector x are sums over different weights, so that under either estimator they are normal
and independent: N(x·mean, x²·std²). Local reparameterization draws them in the place of the weights. Rows are
independent then; under Flipout they are uncorrelated, and share |ΔW|.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..estimators import noise
from ..estimators.lrt import lrt
from ..estimators.products import LinearProduct, Product
from .settings import Settings


@dataclass
class Parting:
    """Where the draws of one example part: there each row becomes as many rows as there are draws, side by side.

    Attributes:
        layer: the first with noise. None: rows part before the model, or there is one draw.
        examples: how many rows it must be given.
        done: whether they parted. They do once, however often the layer is called.
    """

    layer: nn.Module | None = None
    examples: int = 0
    draws: int = 1
    done: bool = False

    def at(self, layer: nn.Module, x: Tensor) -> int:
        """Into how many rows the layer is to make each row of x now."""
        if self.done or layer is not self.layer or len(x) != self.examples:
            return 1
        self.done = True
        return self.draws


_ALONE: ContextVar[Parting | None] = ContextVar("bayesify_examples_alone", default=None)


@contextmanager
def examples_alone(parting: Parting | None = None) -> Iterator[None]:
    """Inside, no one compares the examples of a batch, in this thread or task."""
    token = _ALONE.set(parting or Parting())
    try:
        yield
    finally:
        _ALONE.reset(token)


def parted_rows(layer: nn.Module, x: Tensor) -> int:
    """Into how many rows, each with noise of its own, the layer is to make each row of x."""
    parting = None if torch.compiler.is_compiling() else _ALONE.get()
    return 1 if parting is None else parting.at(layer, x)


def parted(layer: nn.Module, inputs: list[Tensor]) -> list[Tensor]:
    """The inputs with each row as many times as `parted_rows` says."""
    rows = parted_rows(layer, inputs[0])
    return inputs if rows == 1 else [x.repeat_interleave(rows, 0) for x in inputs]


def lrt_has_its_law(settings: Settings, product: Product, x: Tensor, batch_dim: int) -> bool:
    """Whether examples are alone now, and each row of x is one that a Linear multiplies."""
    if torch.compiler.is_compiling() or _ALONE.get() is None:
        return False
    rows = type(product) is LinearProduct and x.dim() == 2 and batch_dim == 0
    return rows and settings.rows <= 1 and settings.signs == "example"


def lrt_of_rows(layer: Any, product: Product, inputs: Sequence[Tensor], *posterior: Any) -> Tensor:
    """The product with noise where `lrt_has_its_law`; without it where only the rows that are given noise count."""
    mean, _, bias, _ = posterior
    counts = noise.counts_rows(len(inputs[0]))
    return product(inputs, mean, bias) if counts else lrt_parted(layer, product, inputs, *posterior)


def lrt_parted(layer: Any, product: Product, inputs: Sequence[Tensor], *posterior: Any) -> Tensor:
    """The layer's product with noise by local reparameterization, for (mean, std, bias, bias_std), its rows parted."""
    draws, noise_dtype = parted_rows(layer, inputs[0]), layer._settings.posterior.narrow_dtype
    return lrt(product, inputs, *posterior, draws=draws, noise_dtype=noise_dtype)
