"""std = softplus(rho), its square and its slope, written into buffers; torch's own softplus costs twice as much.

Where no std of a large piece is above 0.01, series in exp(rho) take the place of log1p and of the quotient: exact to
4e-7. A last coefficient has part of the next term in it, so that fewer terms do.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.parameter import Parameter

SMALLEST = -87.33  # below, exp(rho) is not a normal float32: the std stays at 1.2e-38
_LINEAR = 20.0  # above, softplus(x) is x, as torch has it
_SHORT = -4.6  # below, three terms of the series in exp(rho) are enough
SMALL = 2**12  # elements: for fewer, calls cost more than elements

_STD = (1, -1 / 2, 1 / 3)  # of std/exp(rho)
SLOPE = (1, -1 / 2, 5 / 12)  # of dlog(std)/drho
SQUARE = (1, -1, 11 / 12 - 0.0067)  # of std²/exp(2 rho)
SQUARE_SLOPE = (1, -3 / 2, 11 / 6 - 0.0167)  # of std·dstd/drho/exp(2 rho)
LOG = (-1 / 2, 5 / 24, -1 / 8)  # of (log(std) - rho)/exp(rho)


def write_std(rho: Tensor, std: Tensor, exp: Tensor) -> None:
    """Write softplus(rho) to `std`; `exp` is overwritten too."""
    if all_small(rho):
        _write_small_std(rho, std, exp)
    else:
        _write_any_std(rho, std, exp)


def write_square(rho: Tensor, square: Tensor, exp: Tensor) -> None:
    """Write softplus(rho)² to `square`; `exp` is overwritten too."""
    if all_small(rho):
        write_series(torch.exp(rho, out=exp), SQUARE, square)
        square.mul_(exp).mul_(exp)
    else:
        _write_any_std(rho, square, exp)
        square.mul_(square)


def times_square_slope_(grad: Tensor, rho: Tensor, slope: Tensor, exp: Tensor) -> None:
    """Multiply `grad` by std·dstd/drho = softplus(rho)·sigmoid(rho); `slope` and `exp` are overwritten too."""
    if all_small(rho):
        write_series(torch.exp(rho, out=exp), SQUARE_SLOPE, slope)
        grad.mul_(exp).mul_(slope.mul_(exp))
    else:
        _write_any_std(rho, slope, exp)
        grad.mul_(slope).mul_(torch.sigmoid(rho, out=exp))


def write_slope(rho: Tensor, slope: Tensor, exp: Tensor) -> None:
    """Write dlog(std)/drho = sigmoid(rho)/softplus(rho) to `slope`; `exp` is overwritten too."""
    if all_small(rho):
        write_series(torch.exp(rho, out=exp), SLOPE, slope)
    else:
        _write_any_std(rho, slope, exp)
        torch.div(exp, slope.addcmul_(exp, slope), out=slope)


def write_std_and_slope(rho: Tensor, std: Tensor, slope: Tensor, exp: Tensor) -> None:
    """Both, as `write_std` and `write_slope`."""
    if all_small(rho):
        _write_small_std(rho, std, exp)
        write_series(exp, SLOPE, slope)
    else:
        _write_any_std(rho, std, exp)
        torch.div(exp, torch.addcmul(std, exp, std, out=slope), out=slope)


def write_series(x: Tensor, coefficients: Sequence[float], sum: Tensor) -> None:
    """Write Σ coefficients[k]·xᵏ to `sum`, of two terms or more."""
    *others, second, last = coefficients
    torch.add(_constant(second), x, alpha=last, out=sum)
    for coefficient in reversed(others):
        torch.addcmul(_constant(coefficient), x, sum, out=sum)


def _write_small_std(rho: Tensor, std: Tensor, exp: Tensor) -> None:
    write_series(torch.exp(rho, out=exp), _STD, std)
    std.mul_(exp)


def _write_any_std(rho: Tensor, std: Tensor, exp: Tensor) -> None:
    torch.clamp(rho, SMALLEST, _LINEAR, out=exp).exp_()
    torch.log1p(exp, out=std)
    torch.maximum(std, rho, out=std)


def all_small(rho: Tensor) -> bool:
    """Whether the series serve: for a large piece on a CPU, in float32, without a std above 0.01."""
    plain = type(rho) in (Tensor, Parameter) and rho.is_cpu and rho.dtype is torch.float32
    return plain and rho.numel() >= SMALL and rho.amax().item() < _SHORT


@lru_cache(1024)
def _constant(number: float) -> Tensor:
    with torch.inference_mode(False):  # it outlives the mode that it is first asked for in
        return torch.tensor(float(number))
