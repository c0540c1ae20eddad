"""Predictions: no one compares the examples of a batch, so that a layer may draw for each by itself, and several draws.

The outputs of a Linear for one vector x are sums over different weights, so that under either estimator they are normal
and independent: N(x·mean, x²·std²). Local reparameterization draws them in the place of the weights. Rows are
independent then; under Flipout they are uncorrelated, and share |ΔW|.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..estimators import noise
from ..estimators.flipout import sign_counts
from ..estimators.generators import times_drawn
from ..estimators.lrt import lrt
from ..estimators.products import LinearProduct, Product
from .settings import Settings


@dataclass
class Parting:
    """Where the draws of one example part: there each row becomes as many rows as there are draws, side by side.

    Attributes:
        layer: the first with noise. None: rows part before the model, or there is one draw.
        examples: how many rows it must be given.
        done: whether they parted. They do once, however often the layer is called, and not after other noise.
    """

    layer: nn.Module | None = None
    examples: int = 0
    draws: int = 1
    done: bool = False
    _drawn: int = field(default_factory=times_drawn)

    def at(self, layer: nn.Module, x: Tensor) -> int:
        """Into how many rows the layer is to make each row of x now."""
        if self.done or layer is not self.layer or len(x) != self.examples or times_drawn() != self._drawn:
            return 1
        self.done = True
        return self.draws


@dataclass
class PartingSought(Parting):
    """At the posterior mean: rows part at the first layer that is called, if it is a candidate.

    The first row of each example is the mean's. The others are random, so that what mixes rows does not go unseen; with
    one draw these are all that an example did not have when it was alone.

    Attributes:
        alone: the first layer's output for one example alone.
        first: that output here, before rows part.
        counting: whether `counts` is wanted: what noise each call of a layer would draw.
        drawing: whether those random rows are being drawn.
        noted: called with the output of each layer.
    """

    candidates: Collection[nn.Module] = ()
    alone: Any = None
    first: Any = None
    counting: bool = False
    counts: noise.Counts = field(default_factory=lambda: noise.Counts([], []))
    drawing: bool = False
    noted: Callable[[Any], None] = lambda output: None

    def part(self, layer: Any, inputs: Any, output: Any) -> Any:
        """The layer's output for these arguments, parted."""
        first, self.layer = self.layer is None, self.layer or layer
        self.first = output if first else self.first
        if first and layer in self.candidates and len(output) == self.examples:
            self.done, output = self.draws > 1, self._beside_random(output)
        if self.counting and layer.method == "flipout":
            self._count(layer, layer.product(*inputs), output, self.draws if first and self.done else 1)
        self.noted(output)
        return output

    def _beside_random(self, output: Tensor) -> Tensor:
        self.drawing = True
        others = noise.normal_like(output) * (2 * output.abs().amax().clamp_min(1e-3))
        self.drawing = False
        if self.draws == 1:
            return torch.where(self._is_own(output), output, others)
        return torch.stack([output, *[others] * (self.draws - 1)], 1).flatten(0, 1)

    def _is_own(self, output: Tensor) -> Tensor:
        """Which rows are as the example's own; all of them where its output alone is no row of this one."""
        alone = self.alone
        if alone is None or alone.shape != (1, *output.shape[1:]):
            return torch.ones((), dtype=torch.bool, device=output.device)
        near = (output - alone).abs() <= 1e-2 * alone.abs().amax()
        rows: Tensor = near.flatten(1).all(1).view(-1, *[1] * (output.dim() - 1))
        return rows

    def _count(self, layer: Any, taken: tuple[Product, Sequence[Tensor]], output: Tensor, draws: int) -> None:
        (product, inputs), settings = taken, layer._settings
        batch_dim = settings.batch_dim
        if lrt_has_its_law(settings, product, inputs[0], batch_dim):
            self.counts.rows.append(draws * len(inputs[0]))
        else:
            of_output, *of_inputs = sign_counts(product, [output, *inputs], settings.signs, batch_dim)
            self.counts.signs.extend([of_output, *(draws * count for count in of_inputs)])


_ALONE: ContextVar[Parting | None] = ContextVar("bayesify_examples_alone", default=None)


@contextmanager
def examples_alone(parting: Parting | None = None) -> Iterator[None]:
    """Inside, no one compares the examples of a batch, in this thread or task."""
    token = _ALONE.set(parting or Parting())
    try:
        yield
    finally:
        _ALONE.reset(token)


def are_alone() -> bool:
    """Whether this runs inside `examples_alone`."""
    return _ALONE.get() is not None


def _parting() -> Parting | None:
    """What the innermost `examples_alone` is given, in eager mode; None outside of one."""
    return None if torch.compiler.is_compiling() else _ALONE.get()


def parted_mean(layer: nn.Module, inputs: Any, output: Any) -> Any:
    """What the layer computes at the posterior mean; its rows parted, where that is sought."""
    parting = _parting()
    return parting.part(layer, inputs, output) if isinstance(parting, PartingSought) else output


def parted_rows(layer: nn.Module, x: Tensor) -> int:
    """Into how many rows, each with noise of its own, the layer is to make each row of x."""
    parting = _parting()
    return 1 if parting is None else parting.at(layer, x)


def parted(layer: nn.Module, inputs: list[Tensor]) -> list[Tensor]:
    """The inputs with each row as many times as `parted_rows` says."""
    rows = parted_rows(layer, inputs[0])
    return inputs if rows == 1 else [x.repeat_interleave(rows, 0) for x in inputs]


def lrt_has_its_law(settings: Settings, product: Product, x: Tensor, batch_dim: int) -> bool:
    """Whether examples are alone now, and each row of x is one that a Linear multiplies."""
    if _parting() is None:
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
