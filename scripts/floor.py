"""The least that Flipout and LRT could cost in eager torch, written by hand for Linear and Conv2d.

Two products, one draw, signs as packed bits, one KL pass over all layers, and for the backward pass no more than the
parameters, the draw (Flipout) or one number per output (LRT). The std is exp(log_std), the cheapest there is. No check,
no hook, no switch, no other prior than Normal(0, 1): `tests/test_floor.py` holds its law to the closed forms.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bayesify.estimators.products import ConvProduct, LinearProduct, Product

TOGETHER = 2**14  # numbers: smaller tensors go through the KL in one
_SIGNS = torch.tensor([[2.0 * (byte >> bit & 1) - 1 for bit in range(8)] for byte in range(256)])


def floor_of(plain: nn.Module, method: str, std: float = 0.01) -> nn.Module:
    """A copy of the model with a posterior of this std on every Linear and Conv2d."""
    model = copy.deepcopy(plain)
    for module in list(model.modules()):
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.log_std = nn.Parameter(torch.full_like(module.weight, math.log(std)))
            module.forward = _forward(module, Flipout if method == "flipout" else LRT)  # type: ignore[method-assign]
    return model


def has_floor(plain: nn.Module) -> bool:
    """Whether all that multiplies by a weight is a Linear or a Conv2d."""
    return not any(isinstance(module, nn.RNNBase | nn.MultiheadAttention) for module in plain.modules())


def kl(model: nn.Module) -> Tensor:
    """Σ KL(N(mean, std²) ‖ N(0, 1)) in nats over all layers."""
    pairs = [(m.weight, m.log_std) for m in model.modules() if hasattr(m, "log_std")]
    return KL.apply(*(mean for mean, _ in pairs), *(log_std for _, log_std in pairs))


class Flipout(torch.autograd.Function):
    """x·mean + bias + (x∘s)·(std∘eps)∘r."""

    @staticmethod
    def forward(ctx: Any, product: Product, x: Tensor, mean: Tensor, log_std: Tensor, bias: Tensor | None) -> Tensor:
        eps, output = torch.randn_like(log_std), product([x], mean, bias)
        ctx.product, ctx.channels = product, (_channels(product, x), _channels(product, output))
        bits = torch.randint(-(2**63), 2**63 - 1, (-(-len(x) * sum(ctx.channels) // 64),)).view(torch.uint8)
        s, r = _signs(bits, x, ctx.channels)
        ctx.save_for_backward(x, mean, log_std, eps, bits)
        return output.addcmul_(product([x * s], log_std.exp().mul_(eps), None), r)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, mean, log_std, eps, bits = ctx.saved_tensors
        x_needs, bias_needs = ctx.needs_input_grad[1], ctx.needs_input_grad[4]
        s, r = _signs(bits, x, ctx.channels)
        delta = log_std.exp().mul_(eps)
        (of_x,), of_mean, of_bias = ctx.product.gradients(grad, [x], mean, [x_needs, True, bias_needs])
        (of_flipped,), of_delta, _ = ctx.product.gradients(grad * r, [x * s], delta, [x_needs, True, False])
        return None, of_x.addcmul_(of_flipped, s) if x_needs else None, of_mean, of_delta.mul_(delta), of_bias


class LRT(torch.autograd.Function):
    """x·mean + bias + sqrt(x²·std²)∘eps."""

    @staticmethod
    def forward(ctx: Any, product: Product, x: Tensor, mean: Tensor, log_std: Tensor, bias: Tensor | None) -> Tensor:
        output = product([x], mean, bias)
        deviation = product([x * x], (2 * log_std).exp_(), None).clamp_min_(1e-30).sqrt_()
        eps = torch.randn_like(output)
        output.addcmul_(deviation, eps)
        ctx.product = product
        ctx.save_for_backward(x, mean, log_std, eps.div_(deviation))
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, mean, log_std, slope = ctx.saved_tensors
        x_needs, bias_needs = ctx.needs_input_grad[1], ctx.needs_input_grad[4]
        variance = (2 * log_std).exp_()
        (of_x,), of_mean, of_bias = ctx.product.gradients(grad, [x], mean, [x_needs, True, bias_needs])
        (of_square,), of_variance, _ = ctx.product.gradients(grad * slope, [x * x], variance, [x_needs, True, False])
        return None, of_x.addcmul_(of_square, x) if x_needs else None, of_mean, of_variance.mul_(variance), of_bias


class KL(torch.autograd.Function):
    """Of all layers at once: the means, then the log stds."""

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(*tensors)
        total = torch.zeros(())
        for mean, log_std in _together(tensors):
            std = log_std.exp()
            total += (std.mul_(std).addcmul_(mean, mean).sub_(1).sum() / 2 - log_std.sum())
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        tensors = ctx.saved_tensors
        return *(mean * grad for mean in tensors[: len(tensors) // 2]), *(
            (2 * log_std).exp_().sub_(1).mul_(grad) for log_std in tensors[len(tensors) // 2 :]
        )


def _together(tensors: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    half = len(tensors) // 2
    pairs = list(zip(tensors[:half], tensors[half:], strict=True))
    small = [pair for pair in pairs if pair[0].numel() < TOGETHER]
    if len(small) < 2:
        return pairs
    means, log_stds = (torch.cat([tensor.view(-1) for tensor in each]) for each in zip(*small, strict=True))
    return [pair for pair in pairs if pair[0].numel() >= TOGETHER] + [(means, log_stds)]


def _channels(product: Product, tensor: Tensor) -> int:
    return tensor.shape[1 if isinstance(product, ConvProduct) else -1]


def _signs(bits: Tensor, x: Tensor, channels: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Those of the input and of the output: one for each example and channel, of shapes that broadcast."""
    both = F.embedding(bits.int(), _SIGNS).view(-1)[: len(x) * sum(channels)].view(len(x), -1).split(channels, 1)
    conv = x.dim() == 4
    s, r = (each[:, :, None, None] if conv else each[(slice(None), *[None] * (x.dim() - 2))] for each in both)
    return s, r


def _forward(module: nn.Module, estimator: Any) -> Callable[[Tensor], Tensor]:
    layer: Any = module
    if isinstance(module, nn.Linear):
        product: Any = LinearProduct()
    else:
        product = ConvProduct(layer.stride, layer.padding, layer.dilation, layer.groups)

    def forward(x: Tensor) -> Tensor:
        output: Tensor = estimator.apply(product, x, layer.weight, layer.log_std, layer.bias)
        return output

    return forward

