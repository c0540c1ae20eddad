"""The two estimators, for any product that is linear in its weight: one product with the mean, plus a noise term.

Both noise terms are written twice. The plain formula serves the compiler, which fuses it and decides by itself what to
keep. In eager mode the same formula is an autograd Function that keeps little beside the inputs: Flipout its signs as
bits, LRT one number per output, and computes all else again in the backward pass.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from . import noise
from .posterior import widened
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
    inputs = _rows_together(product, inputs)
    output = product(inputs, mean, bias)
    patterns = [_pattern(product, at, each, signs, batch_dim, fold) for at, each in enumerate((output, *inputs), -1)]
    bits = [noise.sign_bits(pattern.shape, delta) for pattern in patterns]
    spread: Tensor = _in_mode(_flipout_noise, _FlipoutNoise)(product, patterns, delta, bias_delta, *bits, *inputs)
    return output + spread


def lrt(
    product: Product,
    inputs: Sequence[Tensor],
    mean: Tensor,
    std: Tensor,
    bias: Tensor | None = None,
    bias_std: Tensor | None = None,
) -> Tensor:
    """Local reparameterization (Kingma et al. 2015, eq. 6): y = x·mean + sqrt(x²·std²)∘eps, eps per pre-activation.

    The variance is computed in float32 or better. Where it is exactly zero the output is the mean and the gradient of
    the noise is zero; there is no floor under it.
    """
    inputs = _rows_together(product, inputs)
    output = product(autocasted(*inputs), *autocasted(mean, bias))
    with _no_autocast(mean):
        eps = noise.normal_like(widened(output))
        found = _in_mode(_lrt_noise, _LRTNoise)(product, eps, std, bias_std, *inputs)
    spread: Tensor = found[0] if isinstance(found, tuple) else found
    return output + spread.to(output.dtype)


def _rows_together(product: Product, inputs: Sequence[Tensor]) -> list[Tensor]:
    """What torch copies to multiply it, copied once for all products, and so that no one else can write to it."""
    return [each.contiguous() if product.flattens and each.dim() > 2 else each for each in inputs]


def _in_mode(formula: Callable[..., Any], function: type[torch.autograd.Function]) -> Callable[..., Any]:
    return formula if torch.compiler.is_compiling() else function.apply


def autocasted(*tensors: Tensor | None) -> list[Any]:
    """What autocast does to the arguments of a product: the backward pass runs outside of it and must see one dtype."""
    device = next(each.device.type for each in tensors if each is not None)
    if device == "meta" or not torch.is_autocast_enabled(device):
        return list(tensors)
    dtype = torch.get_autocast_dtype(device)
    return [each if each is None or each.dtype is torch.float64 else each.to(dtype) for each in tensors]


def _no_autocast(tensor: Tensor) -> AbstractContextManager[Any]:
    # torch knows no autocast on meta
    return nullcontext() if tensor.is_meta else torch.autocast(tensor.device.type, enabled=False)


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
    of_output, *of_inputs = (pattern.signs(each, dtype) for each, pattern in zip(bits, patterns, strict=True))
    return of_output, [x * sign for x, sign in zip(inputs, of_inputs, strict=True)], of_inputs


def without_autocast(backward: Callable[..., Any]) -> Callable[..., Any]:
    """A backward called inside autocast must not round what forward kept wide: squares overflow in half precision."""

    @functools.wraps(backward)
    def wide(ctx: Any, grad: Tensor, *others: Any) -> Any:
        with _no_autocast(grad):
            return backward(ctx, grad, *others)

    return wide


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
        of_x = [each if each is None else each * sign for each, sign in zip(of_x, of_inputs, strict=True)]
        return None, None, of_delta, of_bias, *(None for _ in ctx.patterns), *of_x


def _lrt_noise(product: Product, eps: Tensor, std: Tensor, bias_std: Tensor | None, *inputs: Tensor) -> Tensor:
    return _safe_sqrt(_variance(product, std, bias_std, inputs)) * eps


def _variance(product: Product, std: Tensor, bias_std: Tensor | None, inputs: Sequence[Tensor]) -> Tensor:
    squares = [widened(x).square() for x in inputs]
    return product(squares, widened(std).square(), None if bias_std is None else widened(bias_std).square())


def _safe_sqrt(variance: Tensor) -> Tensor:
    """sqrt with gradient zero instead of infinity at zero; a convolution's rounding may leave it just below."""
    positive = variance > 0
    return torch.where(positive, torch.where(positive, variance, 1).sqrt(), 0)


def _slope(deviation: Tensor, eps: Tensor) -> Tensor:
    """d(sqrt(variance)·eps)/d variance."""
    positive = deviation > 0
    return torch.where(positive, eps / torch.where(positive, 2 * deviation, 1), 0)


class _LRTNoise(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(product: Product, eps: Tensor, *tensors: Any) -> tuple[Tensor, Tensor]:
        std, bias_std, *inputs = tensors
        deviation = _variance(product, std, bias_std, inputs).clamp_min_(0).sqrt_()
        return deviation * eps, _slope(deviation, eps)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.product, _, *tensors = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1], *tensors)

    @staticmethod
    @without_autocast
    def backward(ctx: Any, grad: Tensor, _: Any) -> Any:
        slope, std, bias_std, *inputs = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second derivative is wanted, and the slope depends on all inputs too
            deviation = _safe_sqrt(_variance(ctx.product, std, bias_std, inputs))
            slope = _slope(deviation, (2 * deviation * slope).detach())
        _, _, std_needs, bias_needs, *x_needs = ctx.needs_input_grad
        needs = [*x_needs, std_needs, bias_needs]
        wide = [widened(x) for x in inputs]
        squares = [x.square() for x in wide]
        of_squares, of_std, of_bias = ctx.product.gradients(grad * slope, squares, widened(std).square(), needs)
        of_x = [
            None if of_square is None else (2 * x * of_square).to(given.dtype)
            for of_square, x, given in zip(of_squares, wide, inputs, strict=True)
        ]
        return None, None, _through_square(of_std, std), _through_square(of_bias, bias_std), *of_x


def _through_square(of_square: Tensor | None, value: Tensor | None) -> Tensor | None:
    return None if of_square is None or value is None else (2 * widened(value) * of_square).to(value.dtype)
