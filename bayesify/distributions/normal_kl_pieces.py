"""KL(q‖p) and its gradients for one piece of a weight tensor: q = N(mean, softplus(rho)²), p = N(centre, std²).

Where the stds are small, few operations do: a sum of a series is a series of sums. What those sums leave of each other
must be a tenth of them, so that it is as exact as they are; otherwise, and elsewhere, the formula is computed as it is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..estimators.softplus import (
    LOG,
    SLOPE,
    SQUARE,
    SQUARE_SLOPE,
    STD,
    constant,
    shortened,
    write_series,
    write_small_exp,
    write_std,
    write_std_and_slope,
)


class Piece(NamedTuple):
    """Posterior and prior of some elements; the prior's std is factor·unit, and `factor` alone where that is None."""

    mean: Tensor
    rho: Tensor
    centre: Tensor | float
    unit: Tensor | None
    factor: float


def sums_of(piece: Piece, one: Tensor, other: Tensor) -> Iterator[tuple[float, Tensor | float]]:
    """(weight, number), the sum of whose products is the KL in nats; two buffers are overwritten."""
    value = _sum_of_small(piece, one, other)
    if value is not None:
        yield 1.0, value
        return
    ratio, excess = one, other
    write_std(piece.rho, ratio, excess)
    yield -1.0, log_sum(_over_std(ratio, piece))
    torch.addcmul(ratio.new_full((), -1), ratio, ratio, out=excess)  # near the prior, a sum less its size is nonsense
    shift = _over_std(torch.sub(piece.mean, piece.centre, out=ratio), piece)
    yield 0.5, excess.addcmul_(shift, shift).sum()


def _over_std(tensor: Tensor, piece: Piece) -> Tensor:
    """Divided by the prior's std, in its place."""
    tensor.div_(piece.factor)
    return tensor if piece.unit is None else tensor.div_(piece.unit)


def _sum_of_small(piece: Piece, exp: Tensor, buffer: Tensor) -> float | None:
    if piece.rho.dim() != 1 or (most := write_small_exp(piece.rho, exp)) is None:
        return None
    count, half = piece.rho.numel(), 0.5 / piece.factor**2
    if piece.unit is None:
        logs, squares = _sums_of_series(piece, exp, buffer, most)
        shift = piece.mean if _is_zero(piece.centre) else torch.sub(piece.mean, piece.centre, out=buffer)
    else:
        write_series(exp, STD, most, buffer)
        ratio = buffer.mul_(exp).div_(piece.unit)
        squares = torch.dot(ratio, ratio).item()
        logs = log_sum(ratio).item()
        shift = torch.sub(piece.mean, piece.centre, out=exp).div_(piece.unit)
    logs -= count * math.log(piece.factor)
    squares = half * (squares + torch.dot(shift, shift).item())
    value = squares - logs - count / 2
    return value if abs(value) > 0.1 * (squares + abs(logs) + count / 2) else None


def _is_zero(centre: Any) -> bool:
    return isinstance(centre, float | int) and centre == 0


def _sums_of_series(piece: Piece, exp: Tensor, buffer: Tensor, most: float) -> tuple[float, float]:
    """Σ log(std) and Σ std², from Σ rho and Σ expᵏ."""
    log, square = shortened(LOG, most), shortened(SQUARE, most)
    powers = _power_sums(exp, buffer, max(len(log) - 1, len(square) + 1))
    logs = piece.rho.sum().item() + sum(each * total for each, total in zip(log[1:], powers, strict=False))
    return logs, sum(each * total for each, total in zip(square, powers[1:], strict=False))


def _power_sums(x: Tensor, buffer: Tensor, count: int) -> list[float]:
    """Σ xᵏ for k = 1, 2, ... to `count` at least."""
    sums, power = [x.sum(), torch.dot(x, x)], x
    while len(sums) < count:
        before, power = power, torch.mul(power, x, out=buffer if power is x else None)
        sums += [torch.dot(power, before), torch.dot(power, power)]
    return [each.item() for each in sums]


def log_sum(numbers: Tensor) -> Tensor:
    """Σ log(number), by one logarithm for each product of eight, if all of those are normal numbers for sure.

    What is multiplied on the way to such a product is no more than most⁸, and no less than the product over most⁷.
    """
    kind = torch.finfo(numbers.dtype)
    if numbers.is_cpu and numbers.numel() % 8 == 0 and numbers.numel() >= _SHORTEST and numbers.is_contiguous():
        products, most = numbers.view(8, -1).prod(0), max(numbers.amax().item(), 1.0)
        if most < kind.max**0.125 and products.amin().item() > kind.tiny * most**7:
            return products.log_().sum()
    return numbers.clamp_min(kind.tiny * kind.eps).log_().sum()  # the smallest number there is


_SHORTEST = 2**12  # numbers: for fewer, calls cost more than logarithms


def write_gradients(
    piece: Piece, grad: Tensor, of_mean: Tensor, of_rho: Tensor, exp: Tensor, one: Tensor, other: Tensor
) -> None:
    """Write those of mean and rho, (mean - centre) / std² and (q's std/std² - 1/q's std)·sigmoid(rho), times `grad`.

    Three buffers are overwritten.
    """
    most = write_small_exp(piece.rho, exp)
    if most is None:
        _write_any_gradients(piece, grad, of_mean, of_rho, exp, one, other)
    elif piece.unit is None:
        _write_gradients_for_number(piece, float(grad), most, of_mean, of_rho, exp)
    else:
        _write_gradients_for_tensor(piece, float(grad), most, of_mean, of_rho, exp, one)


def _write_any_gradients(
    piece: Piece, grad: Tensor, of_mean: Tensor, of_rho: Tensor, std: Tensor, slope: Tensor, buffer: Tensor
) -> None:
    shift = _over_std(torch.sub(piece.mean, piece.centre, out=of_mean), piece)
    _over_std(shift, piece).mul_(grad)
    write_std_and_slope(piece.rho, std, slope, buffer)
    ratio = _over_std(std, piece)
    torch.addcmul(ratio.new_full((), -1), ratio, ratio, out=of_rho).mul_(slope).mul_(grad)


def _write_gradients_for_number(
    piece: Piece, grad: float, most: float, of_mean: Tensor, of_rho: Tensor, exp: Tensor
) -> None:
    of_square = grad / piece.factor**2
    if _is_zero(piece.centre):
        torch.mul(piece.mean, of_square, out=of_mean)
    else:
        torch.sub(piece.mean, piece.centre, out=of_mean).mul_(of_square)
    squares, slopes = (0, 0, *(of_square * each for each in SQUARE_SLOPE)), (*(grad * each for each in SLOPE), 0, 0)
    write_series(exp, [a - b for a, b in zip(squares, slopes, strict=True)], most, of_rho)


def _write_gradients_for_tensor(
    piece: Piece, grad: float, most: float, of_mean: Tensor, of_rho: Tensor, exp: Tensor, inverse: Tensor
) -> None:
    of_square = grad / piece.factor**2
    torch.reciprocal(piece.unit, out=inverse)  # type: ignore[arg-type]
    write_series(exp, STD, most, of_mean)
    ratio = of_mean.mul_(exp).mul_(inverse)
    torch.addcmul(constant(-grad), ratio, ratio, value=of_square, out=of_rho)
    write_series(exp, SLOPE, most, of_mean)
    of_rho.mul_(of_mean)
    torch.sub(piece.mean, piece.centre, out=of_mean).mul_(inverse).mul_(inverse).mul_(of_square)
