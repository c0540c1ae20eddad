"""std = softplus(rho), its square and its slope, written into buffers; torch's own softplus costs twice as much.

Where no std of a large piece is above 0.01, series in s = sigmoid(rho) = 1 - exp(-std) take the place of log1p and of
the quotient: exact to 2e-7. A last coefficient has part of the next term in it, so that fewer terms do. torch's exp
takes twice the time of its sigmoid where MKL computes it on an AMD.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.parameter import Parameter

SMALLEST = -87.33  # below, exp(rho) is not a normal float32: the std stays at 1.2e-38
_LINEAR = 20.0  # above, softplus(x) is x, as torch has it
_SHORT = -4.6  # below, three terms of the series in sigmoid(rho) are enough
SMALL = 2**12  # elements: for fewer, calls cost more than elements

STD = (1, 1 / 2, 1 / 3 + 0.0022)  # of std/s, and of std·dstd/drho/s²
SLOPE = (1, -1 / 2, -1 / 12 - 0.0004)  # of dlog(std)/drho
SQUARE = (1, 1, 11 / 12 + 0.0075)  # of std²/s²
LOG = (-1 / 2, -7 / 24, -5 / 24 - 0.0015)  # of (log(std) - rho)/s


def write_std(rho: Tensor, std: Tensor, buffer: Tensor) -> None:
    """Write softplus(rho) to `std`; `buffer` is overwritten too."""
    if all_small(rho):
        _write_small_std(rho, std, buffer)
    else:
        _write_any_std(rho, std, buffer)


def write_square(rho: Tensor, square: Tensor, buffer: Tensor) -> None:
    """Write softplus(rho)² to `square`; `buffer` is overwritten too."""
    if all_small(rho):
        write_series(torch.sigmoid(rho, out=buffer), SQUARE, square)
        square.mul_(buffer).mul_(buffer)
    else:
        _write_any_std(rho, square, buffer)
        square.mul_(square)


def times_square_slope_(grad: Tensor, rho: Tensor, slope: Tensor, buffer: Tensor) -> None:
    """Multiply `grad` by std·dstd/drho = softplus(rho)·sigmoid(rho); `slope` and `buffer` are overwritten too."""
    if all_small(rho):
        write_series(torch.sigmoid(rho, out=buffer), STD, slope)
        grad.mul_(buffer).mul_(slope.mul_(buffer))
    else:
        _write_any_std(rho, slope, buffer)
        grad.mul_(slope).mul_(torch.sigmoid(rho, out=buffer))


def write_slope(rho: Tensor, slope: Tensor, buffer: Tensor) -> None:
    """Write dlog(std)/drho = sigmoid(rho)/softplus(rho) to `slope`; `buffer` is overwritten too."""
    if all_small(rho):
        write_series(torch.sigmoid(rho, out=buffer), SLOPE, slope)
    else:
        _write_any_std(rho, slope, buffer)
        torch.div(buffer, slope.addcmul_(buffer, slope), out=slope)


def write_std_and_slope(rho: Tensor, std: Tensor, slope: Tensor, buffer: Tensor) -> None:
    """Both, as `write_std` and `write_slope`."""
    if all_small(rho):
        _write_small_std(rho, std, buffer)
        write_series(buffer, SLOPE, slope)
    else:
        _write_any_std(rho, std, buffer)
        torch.div(buffer, torch.addcmul(std, buffer, std, out=slope), out=slope)


def write_series(x: Tensor, coefficients: Sequence[float], sum: Tensor) -> None:
    """Write Σ coefficients[k]·xᵏ to `sum`, of two terms or more."""
    *others, second, last = coefficients
    torch.add(_constant(second), x, alpha=last, out=sum)
    for coefficient in reversed(others):
        torch.addcmul(_constant(coefficient), x, sum, out=sum)


def _write_small_std(rho: Tensor, std: Tensor, sigmoid: Tensor) -> None:
    write_series(torch.sigmoid(rho, out=sigmoid), STD, std)
    std.mul_(sigmoid)


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
