"""softplus(rho) for the compiler: arithmetic beside one exp, and nothing kept for the backward pass but rho.

log1p is the dearest operation of a compiled step. Here log1p(t) = 2·artanh(t/(2 + t)) by a polynomial, since that
argument is at most 1/3: exact to 5e-7. A compiler merges what it is told to compute twice, and keeps it from the
forward pass to the backward one, a tensor of the weight's size for each use; so backward passes use another expression.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def fused_softplus(rho: Tensor) -> Tensor:
    """softplus(rho), differentiable once; torch's own where it is wider than float32, or a program is exported."""
    std: Tensor = _FusedSoftplus.apply(rho) if is_fused(rho) else F.softplus(rho)  # type: ignore[no-untyped-call]
    return std


def fused_square(rho: Tensor) -> Tensor:
    """softplus(rho)², likewise."""
    if not is_fused(rho):
        return F.softplus(rho).square()
    square: Tensor = _FusedSquare.apply(rho)  # type: ignore[no-untyped-call]
    return square


def is_fused(*tensors: Tensor) -> bool:
    """Whether a compiler sees this, and all tensors are float32."""
    compiled = torch.compiler.is_compiling() and not torch.compiler.is_exporting()
    return compiled and all(tensor.dtype is torch.float32 for tensor in tensors)


def softplus_and_slope(rho: Tensor, *, again: bool = False) -> tuple[Tensor, Tensor]:
    """softplus(rho), which stays at float32's smallest normal number, and its derivative sigmoid(rho).

    Args:
        again: for a backward pass.
    """
    t = torch.exp(torch.minimum(rho, -rho) if again else -rho.abs()).clamp_min(torch.finfo(torch.float32).tiny)
    u = t / (t + 2)
    of_u = u * u
    artanh = torch.full_like(u, _ARTANH[-1])
    for coefficient in reversed(_ARTANH[:-1]):
        artanh = artanh * of_u + coefficient
    return rho.clamp_min(0) + 2 * u * artanh, torch.where(rho > 0, 1.0, t) / (1 + t)


# of artanh(u)/u in powers of u², for u² up to 1/9: interpolated at Chebyshev's points, to 4e-9
_ARTANH = (1.000000003840879, 0.3333316082070072, 0.20012297614909472, 0.13982578878397325, 0.14078889156761287)


class _OfRho(torch.autograd.Function):
    """Keeps rho and nothing else."""

    generate_vmap_rule = True

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.save_for_backward(*inputs)


class _FusedSoftplus(_OfRho):
    @staticmethod
    def forward(rho: Tensor) -> Tensor:
        return softplus_and_slope(rho)[0]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (rho,) = ctx.saved_tensors
        return grad * softplus_and_slope(rho, again=True)[1]


class _FusedSquare(_OfRho):
    @staticmethod
    def forward(rho: Tensor) -> Tensor:
        return softplus_and_slope(rho)[0].square()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (rho,) = ctx.saved_tensors
        std, slope = softplus_and_slope(rho, again=True)
        return grad * (2 * std * slope)
