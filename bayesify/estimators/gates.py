"""The gates of LSTM, GRU and RNN: a step as plain operations, and a step forward and back that writes where it is told.

A step is given the pre-activations of all gates. The products of input and hidden state are added up in them, but for
a GRU's last gate, where they stay apart: the reset gate multiplies the hidden state's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

State = tuple[Tensor, ...]  # (h,), or an LSTM's (h, c)
Views = tuple[Tensor, ...]


class Gates(Protocol):
    """One kind of recurrent layer.

    Attributes:
        keeps: whether the backward pass needs the pre-activations' place, where `forward_` leaves the gates.
    """

    keeps: bool

    def together(self, of_x: Any, of_h: Any) -> Any:
        """The pre-activations, along the last dimension, from the products of input and hidden state."""
        ...

    def weight(self, of_x: Tensor, of_h: Tensor) -> Tensor:
        """The matrix that makes the pre-activations from a row that has the input first and the hidden state then."""
        ...

    def step(self, y: Tensor, state: State) -> State:
        """The next state, from the pre-activations."""
        ...

    def parts(self, y: Tensor) -> Views:
        """Views of pre-activations, or of what has their form: what the next two functions take of a step."""
        ...

    def forward_(self, write: Callable[[Tensor], Any], y: Views, before: State, now: State) -> None:
        """Write the next state to `now`; `write` writes the pre-activations, and `y` is a place for them."""
        ...

    def slopes(self, y: Tensor, before: Sequence[Tensor], now: Sequence[Tensor], of_y: Tensor) -> Views:
        """Write to `of_y` what the pre-activations' gradients are multiples of, for all steps at once.

        Given are the states before and after each step, and what `forward_` left in `y`.

        Returns:
            What `back_` takes of a step.
        """
        ...

    def back_(self, of_now: Sequence[Tensor], slopes: Views) -> Tensor | None:
        """Multiply a step's slopes, so that `of_y` becomes the gradient, given that of the state after the step.

        An LSTM's gradient of the cell becomes that of the cell before the step.

        Returns:
            What reaches the hidden state before the step past the pre-activations, if anything does.
        """
        ...


class _Summed:
    def together(self, of_x: Any, of_h: Any) -> Any:
        return of_h if of_x is None else of_x if of_h is None else of_x + of_h

    def weight(self, of_x: Tensor, of_h: Tensor) -> Tensor:
        return torch.cat([of_x, of_h], 1)


class _LSTM(_Summed):
    keeps = True

    def step(self, y: Tensor, state: State) -> State:
        i, f, g, o = y.chunk(4, dim=1)
        c = torch.addcmul(torch.sigmoid(f) * state[1], torch.sigmoid(i), torch.tanh(g))
        return torch.sigmoid(o) * torch.tanh(c), c

    def parts(self, y: Tensor) -> Views:
        i, f, g, o = y.chunk(4, -1)
        return y, y.narrow(-1, 0, 2 * i.shape[-1]), i, f, g, o

    def forward_(self, write: Callable[[Tensor], Any], y: Views, before: State, now: State) -> None:
        (place, both, i, f, g, o), (h, c) = y, now
        write(place)
        both.sigmoid_()
        torch.mul(f, before[1], out=c).addcmul_(i, g.tanh_())
        torch.tanh(c, out=h).mul_(o.sigmoid_())

    def slopes(self, y: Tensor, before: Sequence[Tensor], now: Sequence[Tensor], of_y: Tensor) -> Views:
        (_, both, i, f, g, o), (_, of_both, of_i, of_f, of_g, of_o) = self.parts(y), self.parts(of_y)
        tanh = torch.tanh(now[1])
        _sigmoid_back(tanh, o, grad_input=of_o)
        of_i.copy_(g)
        of_f.copy_(before[1])
        _sigmoid_back(of_both, both, grad_input=of_both)
        _tanh_back(i, g, grad_input=of_g)
        by_cell = of_y.view(*of_y.shape[:-1], 4, -1).narrow(-2, 0, 3)
        return by_cell, of_o, f, _tanh_back(o, tanh, grad_input=tanh)

    def back_(self, of_now: Sequence[Tensor], slopes: Views) -> None:
        (of_h, of_c), (by_cell, of_o, f, of_tanh) = of_now, slopes
        of_c.addcmul_(of_h, of_tanh)
        by_cell.mul_(of_c.unsqueeze(1))
        of_o.mul_(of_h)
        of_c.mul_(f)


class _GRU:
    keeps = True

    def together(self, of_x: Any, of_h: Any) -> Any:
        if of_x is None or of_h is None:
            return None if of_x is of_h else self.together(*(_or_zeros(each, of_x, of_h) for each in (of_x, of_h)))
        both = of_h.shape[-1] // 3 * 2
        return torch.cat([of_x[..., :both] + of_h[..., :both], of_x[..., both:], of_h[..., both:]], -1)

    def weight(self, of_x: Tensor, of_h: Tensor) -> Tensor:
        size = of_h.shape[1]
        both = torch.cat([of_x[: 2 * size], of_h[: 2 * size]], 1)
        return torch.cat([both, F.pad(of_x[2 * size :], (0, size)), F.pad(of_h[2 * size :], (of_x.shape[1], 0))])

    def step(self, y: Tensor, state: State) -> State:
        (h,) = state
        size = h.shape[1]
        r, z = torch.sigmoid(y[:, : 2 * size]).chunk(2, dim=1)
        n = torch.tanh(torch.addcmul(y[:, 2 * size : 3 * size], r, y[:, 3 * size :]))
        return (torch.addcmul(n, z, h - n),)

    def parts(self, y: Tensor) -> Views:
        r, z, n, of_h = y.chunk(4, -1)
        return y, y.narrow(-1, 0, 2 * r.shape[-1]), r, z, n, of_h

    def forward_(self, write: Callable[[Tensor], Any], y: Views, before: State, now: State) -> None:
        place, both, r, z, n, of_h = y
        write(place)
        both.sigmoid_()
        n.addcmul_(r, of_h).tanh_()
        torch.addcmul(n, z, before[0] - n, out=now[0])

    def slopes(self, y: Tensor, before: Sequence[Tensor], now: Sequence[Tensor], of_y: Tensor) -> Views:
        (_, both, r, z, n, of_h), (_, of_both, of_r, of_z, of_n, of_product) = self.parts(y), self.parts(of_y)
        _tanh_back(1 - z, n, grad_input=of_n)
        torch.mul(of_n, r, out=of_product)
        torch.mul(of_n, of_h, out=of_r)
        torch.sub(before[0], n, out=of_z)
        _sigmoid_back(of_both, both, grad_input=of_both)
        return of_y.view(*of_y.shape[:-1], 4, -1), z

    def back_(self, of_now: Sequence[Tensor], slopes: Views) -> Tensor:
        (of_h,), (by_state, z) = of_now, slopes
        by_state.mul_(of_h.unsqueeze(1))
        return of_h * z


class _RNN(_Summed):
    keeps = False

    def __init__(self, activation: Callable[[Tensor], Tensor], activate_: Callable[[Tensor], Tensor], back: Any):
        self._activation, self._activate_, self._back = activation, activate_, back

    def step(self, y: Tensor, state: State) -> State:
        return (self._activation(y),)

    def parts(self, y: Tensor) -> Views:
        return (y,)

    def forward_(self, write: Callable[[Tensor], Any], y: Views, before: State, now: State) -> None:
        write(now[0])
        self._activate_(now[0])

    def slopes(self, y: Tensor, before: Sequence[Tensor], now: Sequence[Tensor], of_y: Tensor) -> Views:
        self._back(of_y.new_ones(()).expand_as(of_y), now[0], of_y)
        return (of_y,)

    def back_(self, of_now: Sequence[Tensor], slopes: Views) -> None:
        slopes[0].mul_(of_now[0])


def _or_zeros(tensor: Tensor | None, *others: Tensor | None) -> Tensor:
    return next(torch.zeros_like(other) for other in others if other is not None) if tensor is None else tensor


_sigmoid_back: Any = torch.ops.aten.sigmoid_backward.grad_input
_tanh_back: Any = torch.ops.aten.tanh_backward.grad_input
_threshold_back: Any = torch.ops.aten.threshold_backward.grad_input

GATES: dict[str, Gates] = {
    "LSTM": _LSTM(),
    "GRU": _GRU(),
    "RNN_TANH": _RNN(torch.tanh, torch.tanh_, lambda grad, h, out: _tanh_back(grad, h, grad_input=out)),
    "RNN_RELU": _RNN(torch.relu, torch.relu_, lambda grad, h, out: _threshold_back(grad, h, 0, grad_input=out)),
}
