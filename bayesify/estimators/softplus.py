"""std = softplus(rho), its square and its slope, written into buffers; torch's own softplus costs five times as much.

Where no std of a large piece is above 0.03, power series in e = exp(rho) take the place of log1p and of the quotient,
with as many terms as the largest e of the piece wants: the std to 2e-6, what is made of it for gradients likewise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.parameter import Parameter

SMALLEST = -87.33  # below, exp(rho) is not a normal float32: the std stays at 1.2e-38
_LINEAR = 20.0  # above, softplus(x) is x, as torch has it
_SMALL_STD = 0.03
_ERROR = 2e-6  # of a series, relative
_SMALLER_STD, _SQUARED = 0.0055, -0.498482  # below, std = e + _SQUARED·e², to 1.8e-6
_INNER, _OUTER = -0.3254148, -0.4999268  # below _SMALL_STD, std = e + _OUTER·(e + _INNER·e²)², to 2e-7
SMALL = 2**14  # elements: for fewer, torch's own softplus takes less time than the calls that it takes here
_FEWEST = 2**12  # elements: for fewer, calls cost more than logarithms

STD = (1, -1 / 2, 1 / 3, -1 / 4, 1 / 5)  # of std/e
SLOPE = (1, -1 / 2, 5 / 12, -3 / 8, 251 / 720)  # of dlog(std)/drho
SQUARE = (1, -1, 11 / 12, -5 / 6, 137 / 180)  # of std²/e²
SQUARE_SLOPE = (1, -3 / 2, 11 / 6, -25 / 12, 137 / 60)  # of std·dstd/drho/e²
LOG = (0, -1 / 2, 5 / 24, -1 / 8, 251 / 2880)  # of log(std) - rho


def write_std(rho: Tensor, std: Tensor, buffer: Tensor) -> None:
    """Write softplus(rho) to `std`; `buffer` is overwritten too."""
    if (most := write_small_exp(rho, std)) is None:
        write_any_std(rho, std, buffer)
    elif most < _SMALLER_STD:
        std.addcmul_(std, std, value=_SQUARED)
    else:
        torch.addcmul(std, std, std, value=_INNER, out=buffer)
        std.addcmul_(buffer, buffer, value=_OUTER)


def write_any_std(rho: Tensor, std: Tensor, exp: Tensor) -> None:
    """`write_std`, as exact as float32 is; `exp` is overwritten too."""
    torch.clamp(rho, SMALLEST, _LINEAR, out=exp).exp_()
    torch.log1p(exp, out=std)
    torch.maximum(std, rho, out=std)


def write_square(rho: Tensor, square: Tensor, buffer: Tensor) -> None:
    """Write softplus(rho)² to `square`; `buffer` is overwritten too."""
    write_std(rho, square, buffer)
    square.mul_(square)


def times_square_slope_(grad: Tensor, rho: Tensor, slope: Tensor, buffer: Tensor) -> None:
    """Multiply `grad` by std·dstd/drho = softplus(rho)·sigmoid(rho); `slope` and `buffer` are overwritten too."""
    if (most := write_small_exp(rho, buffer)) is not None:
        write_multiple(buffer, SQUARE_SLOPE, most, slope)
        grad.mul_(buffer).mul_(slope)
    else:
        write_any_std(rho, slope, buffer)
        grad.mul_(slope).mul_(torch.sigmoid(rho, out=buffer))


def write_slope(rho: Tensor, slope: Tensor, buffer: Tensor) -> None:
    """Write dlog(std)/drho = sigmoid(rho)/softplus(rho) to `slope`; `buffer` is overwritten too."""
    if (most := write_small_exp(rho, buffer)) is not None:
        write_series(buffer, SLOPE, most, slope)
    else:
        write_any_std(rho, slope, buffer)
        torch.div(buffer, slope.addcmul_(buffer, slope), out=slope)


def write_std_and_slope(rho: Tensor, std: Tensor, slope: Tensor, buffer: Tensor) -> None:
    """Both, as `write_std` and `write_slope`, whatever the stds."""
    write_any_std(rho, std, buffer)
    torch.div(buffer, torch.addcmul(std, buffer, std, out=slope), out=slope)


def write_small_exp(rho: Tensor, exp: Tensor) -> float | None:
    """Write exp(rho) to `exp` where series serve: for a large piece on a CPU, in float32, without a std above 0.03.

    Returns:
        The largest; None where series do not serve.
    """
    plain = type(rho) in (Tensor, Parameter) and rho.is_cpu and rho.dtype is torch.float32
    if not plain or rho.numel() < _FEWEST:
        return None
    most = torch.exp(rho, out=exp).amax().item()
    return most if most < _SMALL_STD else None


def write_series(
    x: Tensor, coefficients: Sequence[float], most: float, sum: Tensor, error: float = _ERROR
) -> None:
    """Write Σ coefficients[k]·xᵏ to `sum`, for 0 ≤ x ≤ `most`, to `error` of the first coefficient."""
    _write_terms(x, shortened(tuple(coefficients), abs(coefficients[0]) * error, most), sum)


def write_multiple(
    x: Tensor, coefficients: Sequence[float], most: float, product: Tensor, error: float = _ERROR
) -> None:
    """Write x·Σ coefficients[k]·xᵏ to `product`, as `write_series`; the first coefficient is 1."""
    _, *others = shortened(tuple(coefficients), error / 2, most)  # the first may be off by as much again
    if len(others) == 1:
        torch.addcmul(x, x, x, value=others[0], out=product)
        return
    _write_terms(x, others, product)
    torch.addcmul(x, x, product.mul_(x), out=product)


def _write_terms(x: Tensor, terms: Sequence[float], sum: Tensor) -> None:
    *others, second, last = terms
    torch.add(constant(second), x, alpha=last, out=sum)
    for coefficient in reversed(others):
        torch.addcmul(constant(coefficient), x, sum, out=sum)


def shortened(series: tuple[float, ...], error: float, most: float) -> tuple[float, ...]:
    """A series of two terms or more for 0 ≤ x ≤ `most` with as few terms as are exact to `error`.

    The last term is replaced by the series in lower powers that is nearest to it, as long as that is near enough:
    xⁿ by xⁿ - 2·(most/4)ⁿ·T(x), the Chebyshev polynomial of the range (Lanczos 1938), which is within 1.
    """
    return _shortened(series, error, 2.0 ** (math.ceil(8 * math.log2(max(most, 1e-30))) / 8))


@lru_cache(1024)
def _shortened(series: tuple[float, ...], error: float, most: float) -> tuple[float, ...]:
    *lower, last = series
    n, left = len(lower), error - 2 * abs(last) * (most / 4) ** len(lower)
    if n < 2 or left < 0:
        return series
    chebyshev = [each * most ** (n - k) / _CHEBYSHEV[n][-1] for k, each in enumerate(_CHEBYSHEV[n])]
    return _shortened(tuple(own - last * each for own, each in zip(lower, chebyshev, strict=False)), left, most)


_CHEBYSHEV = {  # coefficients of (x/most)ᵏ
    2: (1, -8, 8),
    3: (-1, 18, -48, 32),
    4: (1, -32, 160, -256, 128),
    5: (-1, 50, -400, 1120, -1280, 512),
    6: (1, -72, 840, -3584, 6912, -6144, 2048),
}


@lru_cache(1024)
def constant(number: float) -> Tensor:
    """The number as a 0-dim tensor."""
    with torch.inference_mode(False):  # it outlives the mode that it is first asked for in
        return torch.tensor(float(number))
