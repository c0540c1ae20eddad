"""KL(q‖p) and its gradients for one piece of a weight tensor: q = N(mean, softplus(rho)²), p = N(centre, std²).

Where the stds are small, few operations do: a sum of a series is a series of sums. What those sums leave of each other
must be no less than a twentieth of them, each exact to a few 1e-8; otherwise the formula is computed as it is.
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
    write_any_std,
    write_multiple,
    write_series,
    write_small_exp,
    write_std_and_slope,
)


class Piece(NamedTuple):
    """Posterior and prior of some elements; the prior's std is factor/|inverse|, and `factor` where that is None."""

    mean: Tensor
    rho: Tensor
    centre: Tensor | float
    inverse: Tensor | None
    factor: float


def sums_of(piece: Piece, one: Tensor, other: Tensor) -> Iterator[tuple[float, Tensor | float]]:
    """(weight, number), the sum of whose products is the KL in nats; two buffers are overwritten."""
    value = _sum_of_small(piece, one, other)
    if value is not None:
        yield 1.0, value
        return
    ratio, excess = one, other
    write_any_std(piece.rho, ratio, excess)  # what is off in a std is off by as much in a small sum
    yield -1.0, log_sum(_over_std(ratio, piece))
    torch.addcmul(ratio.new_full((), -1), ratio, ratio, out=excess)  # near the prior, a sum less its size is nonsense
    shift = _over_std(torch.sub(piece.mean, piece.centre, out=ratio), piece)
    yield 0.5, excess.addcmul_(shift, shift).sum()


def _over_std(tensor: Tensor, piece: Piece) -> Tensor:
    """Divided by the prior's std, in its place, but for the sign."""
    tensor.div_(piece.factor)
    return tensor if piece.inverse is None else tensor.mul_(piece.inverse)


def _sum_of_small(piece: Piece, exp: Tensor, buffer: Tensor) -> float | None:
    if piece.rho.dim() != 1 or (most := write_small_exp(piece.rho, exp)) is None:
        return None
    count, half = piece.rho.numel(), 0.5 / piece.factor**2
    if piece.inverse is None:
        logs, squares = piece.rho.sum().item(), _sum_of_series(half, exp, buffer, most)
        shift = piece.mean if _is_zero(piece.centre) else torch.sub(piece.mean, piece.centre, out=buffer)
    else:
        write_multiple(exp, STD, most, buffer, error=1e-7)
        ratio = buffer.mul_(piece.inverse)
        logs, squares = log_sum(ratio).item(), half * torch.dot(ratio, ratio).item()
        shift = torch.sub(piece.mean, piece.centre, out=exp).mul_(piece.inverse)
    squares += half * torch.dot(shift, shift).item()
    value = count * (math.log(piece.factor) - 0.5) - logs + squares
    return value if abs(value) > 0.05 * (count + abs(logs) + squares) else None


def _is_zero(centre: Any) -> bool:
    return isinstance(centre, float | int) and centre == 0


def _sum_of_series(half: float, exp: Tensor, buffer: Tensor, most: float) -> float:
    """Σ half·std² - (log(std) - rho), to 1e-8 for each element."""
    squares, logs = (0, 0, *(half * each for each in SQUARE)), (*LOG, 0, 0)
    series = shortened(tuple(a - b for a, b in zip(squares, logs, strict=True)), 1e-8, most)
    powers = [exp.numel(), *_power_sums(exp, buffer, len(series) - 1)]
    return sum(each * total for each, total in zip(series, powers, strict=False))


def _power_sums(x: Tensor, buffer: Tensor, count: int) -> list[float]:
    """Σ xᵏ for k = 1, 2, ... to `count` at least."""
    sums, power = [x.sum(), torch.dot(x, x)], x
    while len(sums) < count:
        before, power = power, torch.mul(power, x, out=buffer if power is x else None)
        sums += [torch.dot(power, before), torch.dot(power, power)]
    return [each.item() for each in sums]


def log_sum(numbers: Tensor) -> Tensor:
    """Σ log|number|, by one logarithm for each product of eight, if all of those are normal numbers for sure.

    What is multiplied on the way to such a product is no more than most⁸, and no less than the product over most⁷.
    """
    kind = torch.finfo(numbers.dtype)
    if numbers.is_cpu and numbers.numel() % 8 == 0 and numbers.numel() >= _SHORTEST and numbers.is_contiguous():
        products = numbers.view(8, -1).prod(0).abs_()
        most = max(numbers.amax().item(), -numbers.amin().item(), 1.0)
        if most < kind.max**0.125 and products.amin().item() > kind.tiny * most**7:
            return products.log_().sum()
    return numbers.abs().clamp_min_(kind.tiny * kind.eps).log_().sum()  # the smallest number there is


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
    elif piece.inverse is None:
        _write_gradients_for_number(piece, float(grad), most, of_mean, of_rho, exp)
    else:
        _write_gradients_for_tensor(piece, piece.inverse, float(grad), most, of_mean, of_rho, exp)


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
    piece: Piece, inverse: Tensor, grad: float, most: float, of_mean: Tensor, of_rho: Tensor, exp: Tensor
) -> None:
    of_square = grad / piece.factor**2
    write_multiple(exp, STD, most, of_mean)
    ratio = of_mean.mul_(inverse)
    torch.addcmul(constant(-grad), ratio, ratio, value=of_square, out=of_rho)
    write_series(exp, SLOPE, most, of_mean)
    of_rho.mul_(of_mean)
    torch.sub(piece.mean, piece.centre, out=of_mean).mul_(inverse).mul_(inverse).mul_(of_square)
