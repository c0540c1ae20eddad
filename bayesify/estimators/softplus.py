"""std = softplus(rho) and its slope, written into buffers; torch's own softplus costs twice as much.

Where no std of a large piece is above 0.01, series take the place of log1p and of the quotient: exact to 4e-7.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.parameter import Parameter

SMALLEST = -87.33  # below, exp(rho) is not a normal float32: the std stays at 1.2e-38
_LINEAR = 20.0  # above, softplus(x) is x, as torch has it
_SHORT = -4.6  # below, three terms of the series in exp(rho) are enough
SMALL = 2**12  # elements: for fewer, calls cost more than elements


def write_std(rho: Tensor, std: Tensor, exp: Tensor) -> None:
    """Write softplus(rho) to `std`; `exp` is overwritten too."""
    if _all_small(rho):
        _write_small_std(rho, std, exp)
    else:
        _write_any_std(rho, std, exp)


def write_slope(rho: Tensor, slope: Tensor, exp: Tensor) -> None:
    """Write dlog(std)/drho = sigmoid(rho)/softplus(rho) to `slope`; `exp` is overwritten too."""
    if _all_small(rho):
        _write_small_slope(torch.exp(rho, out=exp), slope)
    else:
        _write_any_std(rho, slope, exp)
        torch.div(exp, slope.addcmul_(exp, slope), out=slope)


def write_std_and_slope(rho: Tensor, std: Tensor, slope: Tensor, exp: Tensor) -> None:
    """Both, as `write_std` and `write_slope`."""
    if _all_small(rho):
        _write_small_std(rho, std, exp)
        _write_small_slope(exp, slope)
    else:
        _write_any_std(rho, std, exp)
        torch.div(exp, torch.addcmul(std, exp, std, out=slope), out=slope)


def _write_small_std(rho: Tensor, std: Tensor, exp: Tensor) -> None:
    torch.exp(rho, out=exp)
    torch.add(_constant(rho, -1 / 2), exp, alpha=1 / 3, out=std)
    torch.addcmul(_constant(rho, 1), exp, std, out=std).mul_(exp)


def _write_small_slope(exp: Tensor, slope: Tensor) -> None:
    torch.add(_constant(exp, -1 / 2), exp, alpha=5 / 12, out=slope)
    torch.addcmul(_constant(exp, 1), exp, slope, out=slope)


def _write_any_std(rho: Tensor, std: Tensor, exp: Tensor) -> None:
    torch.clamp(rho, SMALLEST, _LINEAR, out=exp).exp_()
    torch.log1p(exp, out=std)
    torch.maximum(std, rho, out=std)


def _all_small(rho: Tensor) -> bool:
    plain = type(rho) in (Tensor, Parameter) and rho.is_cpu and rho.dtype is torch.float32
    return plain and rho.numel() >= SMALL and rho.amax().item() < _SHORT


def _constant(like: Tensor, number: float) -> Tensor:
    return torch.full((), number, dtype=like.dtype)
