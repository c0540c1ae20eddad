"""Flipout and local reparameterization of a small linear layer, its examples in rows: `flipout` and `lrt` in few calls.

A call of torch takes more time there than its arithmetic, and Python's own calls, by which those two serve every
product, take more than torch's. The same noise is drawn in the same order, so that a seed gives the same numbers.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.parameter import Parameter

from . import noise
from .eager import by_formula, caller_of, gradients
from .lrt import safe_sqrt
from .precision import without_autocast
from .softplus import SMALL
from .std_forms import SOFTPLUS


def small_flipout(x: Tensor, mean: Tensor, rho: Tensor, bias: Tensor | None) -> Tensor | None:
    """Flipout for x (rows, inputs) and std = softplus(rho); None where the layer or the batch is not small.

    Only for eager code that nothing transforms, see `in_mode`, outside of autocast.
    """
    return caller_of(_Flipout)(x, mean, rho, bias) if _is_small(x, mean, rho, noise.FEW) else None


def small_lrt(x: Tensor, mean: Tensor, rho: Tensor, bias: Tensor | None) -> Tensor | None:
    """Local reparameterization, likewise."""
    return caller_of(_LRT)(x, mean, rho, bias) if _is_small(x, mean, rho, SMALL) else None


def _is_small(x: Tensor, mean: Tensor, rho: Tensor, most: int) -> bool:
    """Whether both are: matrices in float32 on a CPU, the batch of `most` numbers before the layer and behind it."""
    if type(x) not in _PLAIN or x.dim() != 2 or rho.numel() >= SMALL or not (x.is_cpu and mean.is_cpu):
        return False
    return len(x) * max(mean.shape) <= most and x.dtype is mean.dtype is rho.dtype is torch.float32


_PLAIN = (Tensor, Parameter)


class _Flipout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, mean: Tensor, rho: Tensor, bias: Tensor | None) -> Tensor:
        deviation = noise.eager_normal_like(rho).mul_(F.softplus(rho))
        output = F.linear(x, mean, bias)
        of_output, of_x = noise.few_signs(output), noise.few_signs(x)
        output.addcmul_(F.linear(x * of_x, deviation), of_output)
        if ctx is not None:
            ctx.save_for_backward(deviation, of_output, of_x, x, mean, rho, bias)
        return output

    @staticmethod
    @without_autocast
    def backward(ctx: Any, grad: Tensor) -> Any:
        deviation, of_output, of_x, *tensors = ctx.saved_tensors
        needs, (x, mean, rho, _) = ctx.needs_input_grad, tensors
        if by_formula(grad):
            formula = partial(_flipout, SOFTPLUS.eps(deviation, rho), of_output, of_x)
            return tuple(gradients(formula, tensors, needs, grad))
        flipped, of_rho, of_inputs = grad * of_output, None, None
        if needs[2]:
            of_rho = SOFTPLUS.through_deviation_(flipped.T @ (x * of_x), deviation, rho)
        if needs[0]:
            of_inputs = (grad @ mean).addcmul_(flipped @ deviation, of_x)
        return of_inputs, grad.T @ x if needs[1] else None, of_rho, grad.sum(0) if needs[3] else None


def _flipout(
    eps: Tensor, of_output: Tensor, of_x: Tensor, x: Tensor, mean: Tensor, rho: Tensor, bias: Tensor | None
) -> Tensor:
    return F.linear(x, mean, bias) + F.linear(x * of_x, F.softplus(rho) * eps) * of_output


class _LRT(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, mean: Tensor, rho: Tensor, bias: Tensor | None) -> Tensor:
        output = F.linear(x, mean, bias)
        deviation = F.linear(x.square(), F.softplus(rho).square_()).sqrt_()
        eps = noise.eager_normal_like(deviation)
        output.addcmul_(deviation, eps)
        if ctx is not None:
            slope = eps.div_(deviation).nan_to_num_(0, 0, 0)  # none where the variance is zero
            ctx.save_for_backward(slope, x, mean, rho, bias)
        return output

    @staticmethod
    @without_autocast
    def backward(ctx: Any, grad: Tensor) -> Any:
        slope, *tensors = ctx.saved_tensors
        needs, (x, mean, rho, _) = ctx.needs_input_grad, tensors
        if by_formula(grad):
            eps = slope * F.linear(x.detach().square(), F.softplus(rho.detach()).square()).sqrt()
            return tuple(gradients(partial(_lrt, eps), tensors, needs, grad))
        of_deviation, std, of_rho, of_inputs = grad * slope, F.softplus(rho), None, None
        if needs[2]:
            of_rho = (of_deviation.T @ x.square()).mul_(std).mul_(torch.sigmoid(rho))
        if needs[0]:
            of_inputs = (grad @ mean).addcmul_(of_deviation @ std.square_(), x)
        return of_inputs, grad.T @ x if needs[1] else None, of_rho, grad.sum(0) if needs[3] else None


def _lrt(eps: Tensor, x: Tensor, mean: Tensor, rho: Tensor, bias: Tensor | None) -> Tensor:
    return F.linear(x, mean, bias) + safe_sqrt(F.linear(x.square(), F.softplus(rho).square())) * eps
