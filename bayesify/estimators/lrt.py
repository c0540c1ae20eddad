"""Local reparameterization: noise per pre-activation, its variance computed from the squares of input and std.

It is written twice. The plain formula serves the compiler. In eager mode the same formula is an autograd Function that
keeps one number per output beside its inputs, and computes all else again in the backward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from . import noise
from .eager import by_formula, gradients, in_mode, not_a_view, plus_product_, rows_together
from .few_rows import product_with_squares, serves_few_rows
from .narrow_product import of_noise
from .precision import autocasted, no_autocast, widened, without_autocast
from .products import Multiplication, Product
from .std_forms import Form, Std, form_of


def lrt(
    product: Product,
    inputs: Sequence[Tensor],
    mean: Tensor,
    std: Std,
    bias: Tensor | None = None,
    bias_std: Tensor | None = None,
    *,
    draws: int = 1,
    noise_dtype: torch.dtype | None = None,
) -> Tensor:
    """Local reparameterization (Kingma et al. 2015, eq. 6): y = x·mean + sqrt(x²·std²)∘eps, eps per pre-activation.

    The variance is computed in float32 or better, unless `noise_dtype` is narrower. Where it is exactly zero the output
    is the mean and the gradient of the noise is zero; there is no floor under it. With several draws, which follow each
    other in dimension 0 for each row there, std has no gradient.
    """
    inputs = rows_together(product, inputs)
    form, parameter = form_of(std)
    both = product, of_noise(product, noise_dtype, widened(parameter))
    if draws > 1:
        return _several(both, form, parameter, mean, bias, bias_std, inputs, draws)
    output: Tensor = in_mode(_lrt, _LRT)(both, form, parameter, mean, bias, bias_std, *inputs)
    return output


_Both = tuple[Product, Multiplication]  # for the mean, and for the variance


def _lrt(both: _Both, form: Form, *tensors: Any) -> Tensor:
    return _noisy(both, form, None, *tensors)


def _noisy(
    both: _Both, form: Form, eps: Tensor | None, parameter: Tensor, mean: Tensor, bias: Tensor | None,
    bias_std: Tensor | None, *inputs: Tensor,
) -> Tensor:  # fmt: skip
    """The plain formula, for this eps or a new one."""
    product, of_squares = both
    output = product(autocasted(*inputs), *autocasted(mean, bias))
    with no_autocast(mean):
        variance = _variance(of_squares, form.variance(parameter), bias_std, inputs)
        spread = safe_sqrt(variance) * (noise.normal_like(variance) if eps is None else eps)
        return output + spread.to(output.dtype)


def _several(
    both: _Both, form: Form, parameter: Tensor, mean: Tensor, bias: Tensor | None, bias_std: Tensor | None,
    inputs: Sequence[Tensor], draws: int,
) -> Tensor:  # fmt: skip
    product, of_squares = both
    output = product(autocasted(*inputs), *autocasted(mean, bias)).unsqueeze(1)
    with no_autocast(mean):
        variance = _constant_variance(of_squares, form, parameter, bias_std, inputs)
        deviation = variance.clamp_min(0).sqrt_().unsqueeze(1)
        eps = noise.normal_like(deviation.expand(-1, draws, *[-1] * (variance.dim() - 1)))
        if output.dtype is deviation.dtype:
            return torch.addcmul(output, deviation, eps).flatten(0, 1)
        return (output + (deviation * eps).to(output.dtype)).flatten(0, 1)


def _variance(product: Multiplication, square: Tensor, bias_std: Tensor | None, inputs: Sequence[Tensor]) -> Tensor:
    squares = [widened(x).square() for x in inputs]
    return product(squares, square, None if bias_std is None else widened(bias_std).square())


def _constant_variance(
    product: Multiplication, form: Form, parameter: Tensor, bias_std: Tensor | None, inputs: Sequence[Tensor]
) -> Tensor:
    """The variance, without gradients."""
    if not serves_few_rows(product, form, parameter, inputs[0]):
        return _variance(product, form.square(parameter), bias_std, inputs)
    variance = product_with_squares(inputs[0].square(), parameter)
    return variance if bias_std is None else variance.add_(widened(bias_std).square())


def safe_sqrt(variance: Tensor) -> Tensor:
    """sqrt with gradient zero instead of infinity at zero; a convolution's rounding may leave it just below."""
    positive = variance > 0
    return torch.where(positive, torch.where(positive, variance, 1).sqrt(), 0)


class _LRT(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, both: _Both, form: Form, *tensors: Any) -> Tensor:
        parameter, mean, bias, bias_std, *inputs = tensors
        product, of_squares = both
        *narrow, narrow_mean, narrow_bias = autocasted(*inputs, mean, bias)
        output = product(narrow, narrow_mean, narrow_bias)
        with no_autocast(mean):
            variance = _constant_variance(of_squares, form, parameter, bias_std, inputs)
            positive = variance.is_cpu and variance.numel() > 0 and variance.amin().item() > 0
            deviation = (variance if positive else variance.clamp_min_(0)).sqrt_()
            eps = noise.normal_like(deviation)
            if output.dtype is deviation.dtype:
                output.addcmul_(deviation, eps)
            else:
                output.add_(deviation * eps)
        if ctx is not None:
            slope = eps.div_(deviation)
            slope = slope if positive else slope.nan_to_num_(0, 0, 0)  # none where the variance is zero
            ctx.both, ctx.form, ctx.dtype = both, form, narrow_mean.dtype
            ctx.save_for_backward(slope, *tensors)
        return not_a_view(output)

    @staticmethod
    @without_autocast
    def backward(ctx: Any, grad: Tensor) -> Any:
        needs, form, (product, of_squares) = ctx.needs_input_grad[2:], ctx.form, ctx.both
        slope, *tensors = ctx.saved_tensors
        parameter, mean, _, bias_std, *inputs = tensors
        if by_formula(grad):
            std = form.std(parameter.detach())
            eps = slope * safe_sqrt(_variance(of_squares, widened(std).square(), bias_std, inputs)).detach()
            return None, None, *gradients(partial(_noisy, ctx.both, form, eps), tensors, needs, grad)
        narrow = [x.to(ctx.dtype) for x in inputs]
        of_x, of_mean, of_bias = product.gradients(
            grad, narrow, mean.to(ctx.dtype), [*needs[4:], needs[1], needs[2]]
        )
        wide = [widened(x) for x in inputs]
        square = form.square(parameter) if any(needs[4:]) else parameter  # only its shape matters then
        of_x_squares, of_square, of_bias_square = of_squares.gradients(
            grad * slope, [x.square() for x in wide], square, [*needs[4:], needs[0], needs[3]]
        )
        # the slope is twice that in the variance
        of_x = [plus_product_(*each) for each in zip(of_x, of_x_squares, wide, strict=True)]
        if of_square is not None:
            of_square = form.through_square_(of_square, parameter)
        of_bias_std = None if of_bias_square is None else of_bias_square * bias_std
        return None, None, of_square, of_mean, of_bias, of_bias_std, *of_x
