"""The two estimators, for any product that is linear in its weight: one product with the mean, plus a noise term.

Both noise terms are written twice. The plain formula serves the compiler, which fuses it and decides by itself what to
keep. In eager mode the same formula is an autograd Function that keeps little beside the inputs: Flipout its signs as
bits, LRT one number per output, and computes all else again in the backward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from . import noise
from .eager import in_mode, rows_together
from .precision import autocasted, without_autocast
from .products import Product

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


@dataclass(frozen=True, eq=False)
class Pattern:
    """How the signs of one tensor are drawn, and spread where the dimension `dim` of so many rows is folded."""

    shape: list[int]
    dim: int = 0
    rows: int = 0
    fold: Fold | None = None

    def signs(self, bits: Tensor, dtype: torch.dtype) -> Tensor:
        """The signs that the bits say."""
        signs = noise.signs(bits, self.shape, dtype)
        return signs if self.fold is None else self.fold.spread(signs, self.dim, self.rows)


def flipout(
    product: Product,
    inputs: Sequence[Tensor],
    mean: Tensor,
    std: Tensor,
    bias: Tensor | None = None,
    bias_std: Tensor | None = None,
    *,
    signs: Signs = "example",
    batch_dim: int = 0,
    fold: Fold | None = None,
) -> Tensor:
    """Flipout (Wen et al. 2018, eq. 4): y = x·mean + r∘((x∘s)·ΔW), ΔW = std∘eps, with random signs s and r.

    The signs are drawn per example and channel and are constant over all other dimensions, so that each example sees
    one weight draw of its own; `position` draws them for every element. A variational bias moves with r too.
    `batch_dim` is where the examples are, and `fold` how they lie there among others.
    """
    delta = std * noise.normal_like(std)
    bias_delta = None if bias_std is None else bias_std * noise.normal_like(bias_std)
    *inputs, mean, delta, bias, bias_delta = autocasted(*inputs, mean, delta, bias, bias_delta)
    inputs = rows_together(product, inputs)
    output = product(inputs, mean, bias)
    tensors = enumerate((output, *inputs), -1)
    patterns = [_pattern(product, at, tensor, signs, batch_dim, fold) for at, tensor in tensors]
    bits = [noise.sign_bits(pattern.shape, delta) for pattern in patterns]
    spread: Tensor = in_mode(_flipout_noise, _FlipoutNoise)(product, patterns, delta, bias_delta, *bits, *inputs)
    return output + spread












def _pattern(
    product: Product, at: int, tensor: Tensor, signs: Signs, batch_dim: int, fold: Fold | None
) -> Pattern:
    if signs == "position":
        return Pattern(list(tensor.shape))
    kept = product.sign_dims(at, tensor.dim(), batch_dim)
    shape = [size if dim in kept else 1 for dim, size in enumerate(tensor.shape)]
    examples = kept - product.sign_dims(at, tensor.dim(), -1) if fold else set()
    if fold is None or not examples:
        return Pattern(shape)
    (dim,) = examples
    return Pattern([*shape[:dim], fold.examples, *shape[dim + 1 :]], dim, shape[dim], fold)


def _flipout_noise(
    product: Product, patterns: Sequence[Pattern], delta: Tensor, bias: Tensor | None, *bits_and_inputs: Tensor
) -> Tensor:
    of_output, flipped, _ = _flip(patterns, delta.dtype, bits_and_inputs)
    return product(flipped, delta, bias) * of_output


def _flip(
    patterns: Sequence[Pattern], dtype: torch.dtype, bits_and_inputs: Sequence[Tensor]
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """The output's signs, the inputs times theirs, and the inputs' signs."""
    bits, inputs = bits_and_inputs[: len(patterns)], bits_and_inputs[len(patterns) :]
    of_output, *of_inputs = (pattern.signs(words, dtype) for words, pattern in zip(bits, patterns, strict=True))
    return of_output, [x * sign for x, sign in zip(inputs, of_inputs, strict=True)], of_inputs




class _FlipoutNoise(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(product: Product, patterns: Sequence[Pattern], *tensors: Any) -> Tensor:
        return _flipout_noise(product, patterns, *tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.product, ctx.patterns, delta, _, *bits_and_inputs = inputs
        ctx.save_for_backward(delta, *bits_and_inputs)

    @staticmethod
    @without_autocast
    def backward(ctx: Any, grad: Tensor) -> Any:
        delta, *bits_and_inputs = ctx.saved_tensors
        of_output, flipped, of_inputs = _flip(ctx.patterns, delta.dtype, bits_and_inputs)
        _, _, delta_needs, bias_needs, *rest = ctx.needs_input_grad
        needs = [*rest[len(ctx.patterns) :], delta_needs, bias_needs]
        of_x, of_delta, of_bias = ctx.product.gradients(grad * of_output, flipped, delta, needs)
        of_x = [x if x is None else x * sign for x, sign in zip(of_x, of_inputs, strict=True)]
        return None, None, of_delta, of_bias, *(None for _ in ctx.patterns), *of_x












