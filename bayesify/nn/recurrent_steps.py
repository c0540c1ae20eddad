"""One direction of a recurrent layer: its products by the layer's estimator, and where its steps lie in rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..estimators import noise
from ..estimators.gate_products import LocalProduct, SignedProduct
from ..estimators.gates import GATES, Gates, State
from ..estimators.precision import autocasted, is_autocasting
from ..estimators.products import LinearProduct
from ..estimators.recurrence import Walk, recurrence, unrolled
from .folded_batches import fold_of
from .held_draws import Spread
from .switches import unrouted

if TYPE_CHECKING:
    from .base import Variational


def direction(
    layer: Variational, mode: str, x: Tensor, suffix: str, state: State, layout: Layout
) -> tuple[Tensor, State]:
    """One direction of one layer: the outputs, in rows as the layout has them, and the final state."""
    gates, walk = GATES[mode], Walk(layout.sizes, suffix.endswith("_reverse"))
    inputs, hidden = stepwise(layer, f"weight_ih{suffix}"), stepwise(layer, f"weight_hh{suffix}")
    with unrouted():
        product = over_time(gates, inputs, hidden, x.shape[1])
    projected = f"weight_hr{suffix}" in layer._parameters
    if product is not None and not projected:
        outputs, state = recurrence(gates, product, x, state, walk)
    else:
        of_step = _each_step(gates, inputs, hidden, x) if product is None else product.each(x, product.noise(x))
        project = _projection(stepwise(layer, f"weight_hr{suffix}"), x.shape[1]) if projected else None
        outputs, state = unrolled(gates.step, of_step, project, state, walk)
    return layout.rows(outputs), state


@dataclass(frozen=True, eq=False)  # Dynamo hashes what is called, even while it is being made
class StepwiseProduct:
    """y = x Wᵀ + b by the layer's estimator, with noise of its own at every call, or with the draws that are held."""

    layer: Variational
    mean: Tensor
    spread: Spread
    bias: Tensor | None
    bias_spread: Spread | None

    def __call__(self, x: Tensor, batch_dim: int = 0) -> Tensor:
        """The product plus the bias."""
        posterior = self.mean, self.spread, self.bias, self.bias_spread
        return self.layer.multiply(LinearProduct(), [x], *posterior, batch_dim=batch_dim)

    @property
    def held(self) -> int:
        """How many draws are held."""
        return len(self.spread) if isinstance(self.spread, tuple) else 0

    def drawn(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of the only draw that is held."""
        bias, (bias_delta,) = self.bias, self.bias_spread or (None,)
        if bias is not None and bias_delta is not None:
            bias = bias + bias_delta
        return self.mean + self.spread[0], bias


def stepwise(layer: Variational, name: str) -> StepwiseProduct:
    """The product with the matrix `name`, and with the bias of its name if there is one."""
    bias_name = name.replace("weight", "bias")
    bias_spread = None if layer.scale_of(bias_name) is None else layer.spread_of(bias_name)
    mean = layer.mean_of(name)
    return StepwiseProduct(layer, mean, layer.spread_of(name, mean), layer._parameters.get(bias_name), bias_spread)


def over_time(
    gates: Gates, inputs: StepwiseProduct, hidden: StepwiseProduct, examples: int
) -> SignedProduct | LocalProduct | None:
    """The product of all steps with both matrices: one draw (Flipout's or held), or LRT's noise for their sum.

    None where each is to be drawn at each step: for several held draws, for signs per position, which make Flipout's
    steps uncorrelated too, and for LRT where a variance is computed in another dtype than the product.
    """
    layer, bias = inputs.layer, gates.together(inputs.bias, hidden.bias)
    if inputs.held == 1:
        (of_x, bias_of_x), (of_h, bias_of_h) = inputs.drawn(), hidden.drawn()
        return _with_signs(layer, examples, gates.weight(of_x, of_h), gates.together(bias_of_x, bias_of_h))
    if inputs.held or not (_wide(inputs, hidden) if layer.method == "lrt" else layer._settings.signs == "example"):
        return None
    mean, std = gates.weight(inputs.mean, hidden.mean), gates.weight(_std(inputs), _std(hidden))
    bias_stds: Any = inputs.bias_spread, hidden.bias_spread
    if layer.method == "flipout":
        bias_delta = gates.together(*(each if each is None else each * noise.normal_like(each) for each in bias_stds))
        return _with_signs(layer, examples, mean, bias, std * noise.normal_like(std), bias_delta)
    bias_square = gates.together(*(each if each is None else each.square() for each in bias_stds))
    return LocalProduct(mean, std.square(), bias, bias_square)


def _std(product: StepwiseProduct) -> Tensor:
    assert isinstance(product.spread, Tensor)
    return product.spread


def _wide(inputs: StepwiseProduct, hidden: StepwiseProduct) -> bool:
    """Whether LRT's products and variances are all computed in one dtype."""
    dtype = inputs.mean.dtype
    wide = dtype is hidden.mean.dtype and dtype in (torch.float32, torch.float64)
    return wide and not is_autocasting(inputs.mean) and inputs.layer._settings.posterior.narrow_dtype is None


def _with_signs(
    layer: Variational, examples: int, mean: Tensor, bias: Tensor | None = None, delta: Tensor | None = None,
    bias_delta: Tensor | None = None,
) -> SignedProduct:  # fmt: skip
    mean, delta, bias, bias_delta = autocasted(mean, delta, bias, bias_delta)
    bias = None if bias is None else bias.expand(examples, -1)
    if delta is None:
        return SignedProduct(mean, bias=bias)
    of_output, of_input = (_signs(layer, examples, size, delta) for size in delta.shape)
    if bias_delta is not None:
        moved = of_output * bias_delta
        bias = moved if bias is None else bias + moved
    return SignedProduct(mean, delta, of_output, of_input, bias)


def _signs(layer: Variational, examples: int, size: int, like: Tensor) -> Tensor:
    """(examples, size), alike for what is folded into one of the model's examples."""
    fold = fold_of(layer, examples)
    shape = (fold.examples if fold else examples, size)
    signs = noise.signs(noise.sign_bits(shape, like), shape, like.dtype)
    return fold.spread(signs, 0, examples) if fold else signs


def _each_step(
    gates: Gates, inputs: StepwiseProduct, hidden: StepwiseProduct, x: Tensor
) -> Callable[[int, Tensor], Tensor]:
    """Both products with noise of their own at each step; the input's for all steps at once."""
    of_x = inputs(x, batch_dim=1).unbind(0)
    return lambda at, h: gates.together(of_x[at][: h.shape[0]], hidden(h))


def _projection(product: StepwiseProduct, examples: int) -> Callable[[Tensor], Tensor]:
    """An LSTM's projection, with one draw for all steps, or noise of its own at each."""
    layer, drawn = product.layer, None
    if product.held == 1:
        drawn = _with_signs(layer, examples, *product.drawn())
    elif not product.held and layer.method == "flipout" and layer._settings.signs == "example":
        std = _std(product)
        drawn = _with_signs(layer, examples, product.mean, None, std * noise.normal_like(std))
    return product if drawn is None else drawn.product


@dataclass(frozen=True)
class Layout:
    """Where the steps of a batch lie in rows (step after step, in each the sequences that are as long as that).

    Where all sequences are equally long, their rows are (steps, sequences, features) from the start: to fold and unfold
    the first two would tie an exported program to one size of the batch.

    Attributes:
        sizes: how many sequences there are at each step.
        padded: (steps, sequences), the row of each; behind a sequence's end, any row. None where all are equally long.
        within: of each row, where it is among those. None where all are equally long.
    """

    sizes: list[int]
    padded: Tensor | None = None
    within: Tensor | None = None

    @classmethod
    def packed(cls, batch_sizes: Tensor, device: torch.device) -> Layout:
        """Of a PackedSequence's rows."""
        sizes = batch_sizes.tolist()
        starts = torch.tensor([0, *accumulate(sizes)][:-1])
        sequences = torch.arange(sizes[0])
        padded = starts[:, None] + sequences.minimum(batch_sizes[:, None] - 1)
        within = (sequences < batch_sizes[:, None]).flatten().nonzero().squeeze(1)
        return cls(sizes, padded.to(device), within.to(device))

    def spread(self, rows: Tensor) -> Tensor:
        """(rows, features) → (steps, sequences, features), with something behind the ends of short sequences."""
        if self.padded is None:
            return rows
        return rows.index_select(0, self.padded.flatten()).view(*self.padded.shape, rows.shape[1])

    def rows(self, spread: Tensor) -> Tensor:
        """`spread` undone."""
        return spread if self.within is None else spread.flatten(0, 1).index_select(0, self.within)
