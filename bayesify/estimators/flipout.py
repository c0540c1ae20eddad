"""Flipout for any product that is linear in its weight: the product with the mean, plus that of signs and one draw.

It is written twice. The plain formula serves the compiler, which fuses it and decides by itself what to keep. In eager
mode the same formula is an autograd Function that keeps beside its inputs the draw and the signs' bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from . import noise
from .eager import by_formula, gradients, in_mode, not_a_view, plus_product_, rows_together
from .narrow_product import of_noise
from .precision import autocasted, without_autocast
from .products import Multiplication, Product
from .std_forms import Form, Std, form_of

Signs = Literal["example", "position"]


@dataclass(frozen=True)
class Fold:
    """A dimension of (others, examples, run) rows, folded: `run` is 0 where all rows of an example stand together."""

    examples: int
    run: int = 0

    def spread(self, signs: Tensor, dim: int, rows: int) -> Tensor:
        """The examples' signs along `dim`, once for each of the rows there."""
        run = self.run or rows // self.examples
        others = rows // (self.examples * run)
        apart = signs.unsqueeze(dim + 1).unsqueeze(dim)
        sizes = [*signs.shape[:dim], others, self.examples, run, *signs.shape[dim + 1 :]]
        spread: Tensor = apart.expand(sizes).flatten(dim, dim + 2)
        return spread


class Pattern(NamedTuple):
    """How the signs of one tensor are drawn, and spread where the dimension `dim` of so many rows is folded."""

    shape: Sequence[int]
    dim: int = 0
    rows: int = 0
    fold: Fold | None = None

    def spread(self, signs: Tensor) -> Tensor:
        """Signs of `shape`, once for each row of their example."""
        return signs if self.fold is None else self.fold.spread(signs, self.dim, self.rows)


def flipout(
    product: Product,
    inputs: Sequence[Tensor],
    mean: Tensor,
    std: Std,
    bias: Tensor | None = None,
    bias_std: Tensor | None = None,
    *,
    signs: Signs = "example",
    batch_dim: int = 0,
    fold: Fold | None = None,
    noise_dtype: torch.dtype | None = None,
) -> Tensor:
    """Flipout (Wen et al. 2018, eq. 4): y = x·mean + r∘((x∘s)·ΔW), ΔW = std∘eps, with random signs s and r.

    The signs are drawn per example and channel and are constant over all other dimensions, so that each example sees
    one weight draw of its own; `position` draws them for every element. A variational bias moves with r too.
    `batch_dim` is where the examples are, and `fold` how they lie there among others. The product with ΔW is computed
    in `noise_dtype`, where that is narrower than the product with the mean.
    """
    form, parameter = form_of(std)
    bias_deviation = None if bias_std is None else bias_std * noise.normal_like(bias_std)
    *inputs, mean, bias, bias_deviation = autocasted(*inputs, mean, bias, bias_deviation)
    inputs = rows_together(product, inputs)
    spread = _Spread(product, of_noise(product, noise_dtype, mean), form, signs, batch_dim, fold)
    output: Tensor = in_mode(_flipout, _Flipout)(spread, parameter, mean, bias, bias_deviation, *inputs)
    return output


def sign_counts(product: Product, tensors: Sequence[Tensor], signs: Signs, batch_dim: int) -> list[int]:
    """How many signs are drawn for a product's output and each of its inputs, where no dimension is folded."""
    patterns = (_pattern(product, at, x, signs, batch_dim, None) for at, x in enumerate(tensors, -1))
    return [prod(pattern.shape) for pattern in patterns]


class _Spread(NamedTuple):
    """How the noise of one call is made."""

    product: Product
    of_noise: Multiplication
    form: Form
    signs: Signs
    batch_dim: int
    fold: Fold | None

    def patterns(self, output: Tensor, inputs: Sequence[Tensor]) -> list[Pattern]:
        """The signs' patterns, of the output first."""
        tensors = enumerate((output, *inputs), -1)
        return [_pattern(self.product, at, x, self.signs, self.batch_dim, self.fold) for at, x in tensors]


def _pattern(
    product: Product, at: int, tensor: Tensor, signs: Signs, batch_dim: int, fold: Fold | None
) -> Pattern:
    shape: Sequence[int] = tensor.shape
    if signs == "position":
        return Pattern(shape)
    kept = product.sign_dims(at, len(shape), batch_dim)
    if fold is None and len(kept) == len(shape):
        return Pattern(shape)
    shape = [size if dim in kept else 1 for dim, size in enumerate(shape)]
    examples = kept - product.sign_dims(at, len(shape), -1) if fold else None
    if fold is None or not examples:
        return Pattern(shape)
    (dim,) = examples
    return Pattern([*shape[:dim], fold.examples, *shape[dim + 1 :]], dim, shape[dim], fold)


def _flipout(spread: _Spread, *tensors: Any) -> Tensor:
    eps = noise.normal_like(tensors[0])  # like the parameter: the compiler need not store the std to draw
    return _flipped(spread, spread.form.std(tensors[0]) * eps, None, *tensors[1:])


def _flipped(
    spread: _Spread, deviation: Tensor, bits: Sequence[Tensor] | None, mean: Tensor, bias: Tensor | None,
    bias_deviation: Tensor | None, *inputs: Tensor,
) -> Tensor:  # fmt: skip
    """The plain formula for a draw, and for the signs of these bits or of new ones."""
    output = spread.product(inputs, mean, bias)
    patterns = spread.patterns(output, inputs)
    bits = [noise.sign_bits(pattern.shape, deviation) for pattern in patterns] if bits is None else bits
    of_output, *of_inputs = _signs(bits, patterns, mean.dtype)
    flipped = [x * sign for x, sign in zip(inputs, of_inputs, strict=True)]
    return output + spread.of_noise(flipped, deviation.to(mean.dtype), bias_deviation) * of_output


class _Flipout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, spread: _Spread, *tensors: Any) -> Tensor:
        parameter, mean, bias, bias_deviation, *inputs = tensors
        drawn = spread.form.draw(parameter)
        output = spread.product(inputs, mean, bias)
        patterns = spread.patterns(output, inputs)
        bits = [noise.sign_bits(pattern.shape, drawn) for pattern in patterns]
        of_output, *of_inputs = _signs(bits, patterns, mean.dtype)
        deviation = spread.form.deviation(drawn, parameter).to(mean.dtype)
        flipped = [x * sign for x, sign in zip(inputs, of_inputs, strict=True)]
        output.addcmul_(spread.of_noise(flipped, deviation, bias_deviation), of_output)
        if ctx is not None:
            ctx.spread, ctx.patterns = spread, patterns
            ctx.save_for_backward(drawn, *bits, *tensors)
        return not_a_view(output)

    @staticmethod
    @without_autocast
    def backward(ctx: Any, grad: Tensor) -> Any:
        needs, spread, patterns = ctx.needs_input_grad[1:], ctx.spread, ctx.patterns
        drawn, *others = ctx.saved_tensors
        bits, tensors = others[: -len(needs)], others[-len(needs) :]
        parameter, mean, _, _, *inputs = tensors
        form, product = spread.form, spread.product
        if by_formula(grad):
            eps = form.eps(drawn, parameter)

            def formula(parameter: Tensor, *others: Any) -> Tensor:
                return _flipped(spread, form.std(parameter) * eps, bits, *others)

            return None, *gradients(formula, tensors, needs, grad)
        of_output, *of_inputs = _signs(bits, patterns, mean.dtype)
        flipped = [x * sign for x, sign in zip(inputs, of_inputs, strict=True)]
        deviation = form.deviation(drawn, parameter)
        of_x, of_mean, of_bias = product.gradients(grad, inputs, mean, [*needs[4:], needs[1], needs[2]])
        of_flipped, of_deviation, of_bias_deviation = spread.of_noise.gradients(
            grad * of_output, flipped, deviation.to(mean.dtype), [*needs[4:], needs[0], needs[3]]
        )
        of_x = [plus_product_(*each) for each in zip(of_x, of_flipped, of_inputs, strict=True)]
        if of_deviation is not None:
            of_deviation = form.through_deviation_(of_deviation.to(deviation.dtype), drawn, parameter)
        return None, of_deviation, of_mean, of_bias, of_bias_deviation, *of_x


def _signs(bits: Sequence[Tensor], patterns: Sequence[Pattern], dtype: torch.dtype) -> list[Tensor]:
    drawn = zip(bits, patterns, strict=True)
    return [pattern.spread(noise.signs(own, pattern.shape, dtype)) for own, pattern in drawn]
