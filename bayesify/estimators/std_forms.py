"""A posterior's std in the forms that an estimator can take it: as a tensor, or as rho with std = softplus(rho).

What an estimator does with a std, it asks of the form, so that its backward pass can do it again from the parameter and
need not keep the result. Functions that end in an underscore write to their first argument, where that is possible.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from . import noise
from .fused_softplus import fused_softplus, fused_square
from .pieces import in_pieces
from .precision import widened
from .softplus import SMALL, SMALLEST, times_square_slope_, write_slope, write_square, write_std


@dataclass(frozen=True, eq=False)
class SoftplusStd:
    """std = softplus(rho), computed where it is needed."""

    rho: Tensor


Std = Tensor | SoftplusStd


class Form(Protocol):
    """What is done with a std, given the parameter that it is computed from."""

    def std(self, parameter: Tensor) -> Tensor:
        """The std, differentiable."""
        ...

    def variance(self, parameter: Tensor) -> Tensor:
        """The std's square in float32 or better, differentiable."""
        ...

    def draw(self, parameter: Tensor) -> Tensor:
        """What a backward pass wants to keep of one draw."""
        ...

    def deviation(self, drawn: Tensor, parameter: Tensor) -> Tensor:
        """std∘eps of a draw."""
        ...

    def eps(self, drawn: Tensor, parameter: Tensor) -> Tensor:
        """eps of a draw, a constant."""
        ...

    def through_deviation_(self, grad: Tensor, drawn: Tensor, parameter: Tensor) -> Tensor:
        """The parameter's gradient from that of the deviation."""
        ...

    def square(self, parameter: Tensor) -> Tensor:
        """std² in float32 or better, not differentiable."""
        ...

    def through_square_(self, grad: Tensor, parameter: Tensor) -> Tensor:
        """The parameter's gradient from twice that of std²: it times std·dstd/dparameter."""
        ...


def form_of(std: Std) -> tuple[Form, Tensor]:
    """The form of a std, and the parameter that it is computed from."""
    return (SOFTPLUS, std.rho) if isinstance(std, SoftplusStd) else (_GIVEN, std)


class _Given:
    def std(self, parameter: Tensor) -> Tensor:
        return parameter

    def variance(self, parameter: Tensor) -> Tensor:
        return widened(parameter).square()

    def draw(self, parameter: Tensor) -> Tensor:
        return noise.normal_like(parameter)

    def deviation(self, drawn: Tensor, parameter: Tensor) -> Tensor:
        return drawn * parameter

    def eps(self, drawn: Tensor, parameter: Tensor) -> Tensor:
        return drawn

    def through_deviation_(self, grad: Tensor, drawn: Tensor, parameter: Tensor) -> Tensor:
        return _own(grad).mul_(drawn)

    def square(self, parameter: Tensor) -> Tensor:
        return widened(parameter).square()

    def through_square_(self, grad: Tensor, parameter: Tensor) -> Tensor:
        return _own(grad).mul_(widened(parameter))


class _Softplus:
    """Keeps the deviation of a draw: eps is that over the std."""

    def std(self, parameter: Tensor) -> Tensor:
        return fused_softplus(parameter)

    def variance(self, parameter: Tensor) -> Tensor:
        return fused_square(widened(parameter))

    def draw(self, parameter: Tensor) -> Tensor:
        drawn = noise.normal_like(parameter)
        if parameter.numel() < SMALL:
            return drawn.mul_(F.softplus(parameter))
        for rho, deviation, std, exp in in_pieces(parameter, drawn, scratch=2):
            write_std(rho, std, exp)
            deviation.mul_(std)
        return drawn

    def deviation(self, drawn: Tensor, parameter: Tensor) -> Tensor:
        return drawn

    def eps(self, drawn: Tensor, parameter: Tensor) -> Tensor:
        return drawn / F.softplus(parameter.detach().clamp_min(SMALLEST))

    def through_deviation_(self, grad: Tensor, drawn: Tensor, parameter: Tensor) -> Tensor:
        grad = _own(grad)
        if parameter.numel() < SMALL:
            rho = parameter.clamp_min(SMALLEST)
            return grad.mul_(drawn).mul_(torch.sigmoid(rho).div_(F.softplus(rho)))
        for of_rho, deviation, rho, slope, exp in in_pieces(grad, drawn, parameter, scratch=2):
            write_slope(rho, slope, exp)
            of_rho.mul_(deviation).mul_(slope)
        return grad

    def square(self, parameter: Tensor) -> Tensor:
        if parameter.numel() < SMALL:
            return F.softplus(parameter).square_()
        result = torch.empty_like(parameter)
        for rho, square, exp in in_pieces(parameter, result, scratch=1):
            write_square(rho, square, exp)
        return result

    def through_square_(self, grad: Tensor, parameter: Tensor) -> Tensor:
        grad = _own(grad)
        if parameter.numel() < SMALL:
            return grad.mul_(F.softplus(parameter)).mul_(torch.sigmoid(parameter))
        for of_rho, rho, slope, exp in in_pieces(grad, parameter, scratch=2):
            times_square_slope_(of_rho, rho, slope, exp)
        return grad


_GIVEN, SOFTPLUS = _Given(), _Softplus()


def _own(grad: Tensor) -> Tensor:
    """A gradient that can be written to: some products give one element for many."""
    return grad if grad.is_contiguous() else grad.clone(memory_format=torch.contiguous_format)
