"""The product that makes the pre-activations of a recurrent layer's gates from rows of input and hidden state.

By Flipout, with one draw for the sequence, or by LRT, with noise at each step. Each is a formula of plain operations,
and the same forward and back for `recurrence`, which goes through a sequence without autograd: what all steps share is
prepared once, and the gradients of weights and inputs are products over all steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from . import noise
from .lrt import safe_sqrt

Writer = Callable[[int, Tensor, Any, Tensor], None]  # of the step, its rows, its eps, and out


class GateProduct(Protocol):
    """What `recurrence` asks of a product. Iterating gives its tensors, with None for those that it lacks."""

    @property
    def mean(self) -> Tensor:
        """The weight's mean, (out, in)."""
        ...

    def noise(self, x: Tensor) -> Tensor | None:
        """The random numbers of all steps (steps, examples, out), where a step has its own."""
        ...

    def each(self, x: Tensor, eps: Tensor | None) -> Callable[[int, Tensor], Tensor]:
        """The pre-activations as a function of step and hidden states, those of the first sequences.

        Given are the input and the random numbers of all steps.
        """
        ...

    def writer(self, x: Tensor, keeps: bool) -> Writer:
        """`each`, for gradients turned off: it is given rows of input and hidden state, and writes to `out`.

        Where it `keeps`, it leaves in `eps` what `back` wants of it.
        """
        ...

    def eps(self, rows: Tensor, kept: Tensor | None) -> Tensor | None:
        """The random numbers again, from what the writer left of them."""
        ...

    def back(self, columns: slice) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
        """The way back to these columns of rows: a function of grad, rows, and what the writer left.

        It takes one step's, or those of all steps at once.
        """
        ...

    def gradients(self, grad: Tensor, rows: Tensor, kept: Tensor | None, needs: Sequence[bool]) -> list[Tensor | None]:
        """Those of the product's own tensors, from all steps."""
        ...


class SignedProduct(NamedTuple):
    """y = x Wᵀ + r∘((x∘s) ΔWᵀ) + b, where ΔW and each example's signs r and s are the same at every step.

    Attributes:
        mean, delta: W and ΔW, (out, in). Without ΔW, W is a draw that serves all examples.
        of_output, of_input: r (examples, out) and s (examples, in).
        bias: (examples, out), with its noise; None where there is none.
    """

    mean: Tensor
    delta: Tensor | None = None
    of_output: Tensor | None = None
    of_input: Tensor | None = None
    bias: Tensor | None = None

    def noise(self, x: Tensor) -> None:
        return None

    def each(self, x: Tensor, eps: Tensor | None) -> Callable[[int, Tensor], Tensor]:
        bases, of_h = self._of_inputs(x).unbind(0), self._columns(slice(x.shape[-1], None))
        return lambda at, h: of_h.product(h, bases[at][: h.shape[0]])

    def product(self, rows: Tensor, onto: Tensor | None = None) -> Tensor:
        """The product without the bias, for the first of the examples."""
        count = rows.shape[-2]
        if onto is None or rows.dim() > 2:
            y = rows @ self.mean.T
            y = y if onto is None else y + onto
        else:
            y = torch.addmm(onto, rows, self.mean.T)
        if self.delta is None or self.of_output is None or self.of_input is None:
            return y
        return torch.addcmul(y, self.of_output[:count], (rows * self.of_input[:count]) @ self.delta.T)

    def _of_inputs(self, x: Tensor) -> Tensor:
        """What the inputs of all steps give, and the bias."""
        return self._columns(slice(0, x.shape[-1])).product(x, self.bias)

    def _columns(self, which: slice) -> SignedProduct:
        delta, of_input = (None if each is None else each[:, which] for each in (self.delta, self.of_input))
        return SignedProduct(self.mean[:, which], delta, self.of_output, of_input)

    def writer(self, x: Tensor, keeps: bool) -> Writer:
        steps, columns = len(x), _of_each_step(self.mean, x)
        bases = [self.bias] * steps if columns.start == 0 else self._of_inputs(x).unbind(0)
        mean = _laid_out(self.mean[:, columns], steps)
        delta = None if self.delta is None else _laid_out(self.delta[:, columns], steps)
        of_input = None if self.of_input is None else self.of_input[:, columns]

        def write(at: int, rows: Tensor, eps: None, out: Tensor) -> None:
            count, base = rows.shape[0], bases[at]
            rows = rows if columns.start == 0 else rows[:, columns]
            _write_product(base, rows, mean, out)
            if delta is not None and self.of_output is not None and of_input is not None:
                out.addcmul_(_first(self.of_output, count), (rows * _first(of_input, count)) @ delta)

        return write

    def eps(self, rows: Tensor, kept: Tensor | None) -> None:
        return None

    def back(self, columns: slice) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
        mean = self.mean[:, columns]
        if self.delta is None or self.of_output is None or self.of_input is None:
            return lambda grad, rows, kept: grad @ mean
        delta, of_output, of_input = self.delta[:, columns], self.of_output, self.of_input[:, columns]

        def of_rows(grad: Tensor, rows: Tensor, kept: Tensor | None) -> Tensor:
            count = rows.shape[-2]
            flipped = grad * _first(of_output, count)
            return (grad @ mean).addcmul_(flipped @ delta, _first(of_input, count))

        return of_rows

    def gradients(self, grad: Tensor, rows: Tensor, kept: Tensor | None, needs: Sequence[bool]) -> list[Tensor | None]:
        of_mean = _of_weight(grad, rows) if needs[0] else None
        of_delta = None
        if needs[1] and self.of_output is not None and self.of_input is not None:
            of_delta = _of_weight(grad * self.of_output, rows * self.of_input)
        return [of_mean, of_delta, None, None, grad.sum(0) if needs[4] else None]


class LocalProduct(NamedTuple):
    """y = x Wᵀ + b + sqrt(x² squareᵀ + bias_square)∘eps, with eps anew at each step.

    Attributes:
        mean, square: W and its variance, (out, in).
        bias, bias_square: (out,); None where there is none.
    """

    mean: Tensor
    square: Tensor
    bias: Tensor | None = None
    bias_square: Tensor | None = None

    def noise(self, x: Tensor) -> Tensor:
        return noise.normal_like(x.new_empty(*x.shape[:-1], self.mean.shape[0]))

    def each(self, x: Tensor, eps: Any) -> Callable[[int, Tensor], Tensor]:
        bases, variances = self._of_inputs(x)
        mean, square, numbers = self.mean[:, x.shape[-1] :].T, self.square[:, x.shape[-1] :].T, eps.unbind(0)

        def of_step(at: int, h: Tensor) -> Tensor:
            count = h.shape[0]
            deviation = safe_sqrt(torch.addmm(variances[at][:count], h.square(), square))
            return torch.addcmul(torch.addmm(bases[at][:count], h, mean), deviation, numbers[at][:count])

        return of_step

    def _of_inputs(self, x: Tensor) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """What the inputs give at each step, and the bias: to the mean, and to the variance."""
        of_x = slice(0, x.shape[-1])
        mean = F.linear(x, self.mean[:, of_x], self.bias)
        return mean.unbind(0), F.linear(x.square(), self.square[:, of_x], self.bias_square).unbind(0)

    def writer(self, x: Tensor, keeps: bool) -> Writer:
        steps, columns = len(x), _of_each_step(self.mean, x)
        bases: Sequence[Tensor | None] = [self.bias] * steps
        variances: Sequence[Tensor | None] = [self.bias_square] * steps
        if columns.start > 0:
            bases, variances = self._of_inputs(x)
        mean, square = _laid_out(self.mean[:, columns], steps), _laid_out(self.square[:, columns], steps)

        def write(at: int, rows: Tensor, eps: Tensor, out: Tensor) -> None:
            rows = rows if columns.start == 0 else rows[:, columns]
            _write_product(bases[at], rows, mean, out)
            deviation = _write_product(variances[at], rows.square(), square, out.new_empty(out.shape)).sqrt_()
            out.addcmul_(deviation, eps)
            if keeps:
                eps.div_(deviation).nan_to_num_(0, 0, 0)  # no slope where the variance is zero

        return write

    def eps(self, rows: Tensor, kept: Any) -> Tensor:
        return kept * self._deviation(rows)  # type: ignore[no-any-return]

    def _deviation(self, rows: Tensor) -> Tensor:
        return safe_sqrt(F.linear(rows.square(), self.square, self.bias_square))

    def back(self, columns: slice) -> Callable[[Tensor, Tensor, Any], Tensor]:
        mean, square = self.mean[:, columns], self.square[:, columns]

        def of_rows(grad: Tensor, rows: Tensor, kept: Tensor) -> Tensor:
            # the slope is twice that in the variance
            return (grad @ mean).addcmul_((grad * kept) @ square, rows[..., columns])

        return of_rows

    def gradients(self, grad: Tensor, rows: Tensor, kept: Any, needs: Sequence[bool]) -> list[Tensor | None]:
        of_mean = _of_weight(grad, rows) if needs[0] else None
        of_variance = (grad * kept).mul_(0.5) if needs[1] or needs[3] else None
        of_square = _of_weight(of_variance, rows.square()) if needs[1] and of_variance is not None else None
        of_bias = grad.sum((0, 1)) if needs[2] else None
        return [of_mean, of_square, of_bias, of_variance.sum((0, 1)) if needs[3] and of_variance is not None else None]


def _first(tensor: Tensor, count: int) -> Tensor:
    """The first rows; all of them at no cost."""
    return tensor if tensor.shape[0] == count else tensor[:count]


_LARGE = 2**18  # elements of a weight that many steps read from memory rather than from the cache


def _of_each_step(weight: Tensor, x: Tensor) -> slice:
    """Those that are multiplied step by step: where the weight is large, the inputs' are for all steps at once."""
    return slice(x.shape[-1] if weight.numel() >= _LARGE else 0, None)


def _laid_out(weight: Tensor, steps: int) -> Tensor:
    """Wᵀ; laid out anew where that pays: few rows are multiplied with it in two thirds of the time."""
    return weight.T.contiguous() if steps >= (64 if weight.numel() >= _LARGE else 8) else weight.T


def _write_product(base: Tensor | None, rows: Tensor, weight: Tensor, out: Tensor) -> Tensor:
    """base + rows·weight."""
    if base is None:
        return torch.mm(rows, weight, out=out)
    return torch.addmm(base if base.dim() < 2 else _first(base, rows.shape[0]), rows, weight, out=out)


def _of_weight(grad: Tensor, rows: Tensor) -> Tensor:
    return grad.flatten(0, 1).T @ rows.flatten(0, 1)
