"""Local reparameterization: noise per pre-activation, its variance computed from the squares of input and std.

The noise term is written twice. The plain formula serves the compiler. In eager mode the same formula is an autograd
Function that keeps one number per output beside the inputs, and computes all else again in the backward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import noise
from .eager import in_mode, rows_together
from .precision import autocasted, no_autocast, widened, without_autocast
from .products import Product


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
    inputs = rows_together(product, inputs)
    output = product(autocasted(*inputs), *autocasted(mean, bias))
    with no_autocast(mean):
        eps = noise.normal_like(widened(output))
        answer = in_mode(_lrt_noise, _LRTNoise)(product, eps, std, bias_std, *inputs)
    spread: Tensor = answer[0] if isinstance(answer, tuple) else answer
    return output + spread.to(output.dtype)


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




