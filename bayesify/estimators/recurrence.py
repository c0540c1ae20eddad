"""A recurrent layer's way through a sequence.

It is written twice. The plain loop serves the compiler and torch's transforms. In eager mode the same steps are one
autograd Function over all of them: of a step it keeps the gates, the input and the states, and the gradients of weights
and inputs are products over all steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.parameter import Parameter

from .eager import by_formula, gradients, in_mode
from .gate_products import GateProduct
from .gates import Gates, State
from .precision import no_autocast


def recurrence(gates: Gates, product: Any, x: Tensor, state: State, walk: Walk) -> tuple[Tensor, State]:
    """The hidden states (steps, sequences, size) after each step of x (steps, sequences, ...), and the last state."""
    sequence = _Sequence(gates, type(product), len(state), state[0].shape[1], walk)
    tensors = (x, *state, *product)
    kinds = {(type(each) in (Tensor, Parameter), each.dtype) for each in tensors if each is not None}
    run = in_mode(_formula, _Recurrence) if kinds == {(True, x.dtype)} else _formula
    outputs, *last = run(sequence, *tensors)
    return outputs, tuple(last)


@dataclass(frozen=True)
class Walk:
    """The order of steps, and how many sequences go on at each: the first ones.

    The states of the others stay: forward they have ended, and in reverse they have yet to begin.
    """

    sizes: Sequence[int]
    reverse: bool

    def __iter__(self) -> Iterator[tuple[int, int]]:
        steps = len(self.sizes)
        for at in range(steps - 1, -1, -1) if self.reverse else range(steps):
            yield at, self.sizes[at]

    @property
    def first(self) -> int:
        """Where the state before the first step lies, in a row of the states before and after each."""
        return -1 if self.reverse else 0

    @property
    def last(self) -> int:
        """Where the last one lies, there and among the states after each step."""
        return 0 if self.reverse else -1

    def places(self, at: int) -> tuple[int, int]:
        """Where the states before and after a step lie, in a row of them."""
        return (at + 1, at) if self.reverse else (at, at + 1)

    def before(self, states: Tensor) -> Tensor:
        """Of such a row, the states before each step."""
        return states[1:] if self.reverse else states[:-1]

    def after(self, states: Tensor) -> Tensor:
        """Of such a row, the states after each step."""
        return states[:-1] if self.reverse else states[1:]


def unrolled(
    step: Callable[[Tensor, State], State], product: Callable[[int, Tensor], Tensor],
    project: Callable[[Tensor], Tensor] | None, state: State, walk: Walk,
) -> tuple[Tensor, State]:  # fmt: skip
    """As `recurrence`, by plain operations: `product(at, h)` gives the pre-activations, `project` an LSTM's outputs."""
    outputs = []
    for at, count in walk:
        short = count < walk.sizes[0]
        now = tuple(part[:count] for part in state) if short else state
        h, *c = step(product(at, now[0]), now)
        h = h if project is None else project(h)
        state = tuple(torch.cat([a, b[count:]]) for a, b in zip((h, *c), state, strict=True)) if short else (h, *c)
        outputs.append(state[0])
    return torch.stack(outputs[::-1] if walk.reverse else outputs), state


@dataclass(frozen=True)
class _Sequence:
    gates: Gates
    product: Callable[..., GateProduct]
    states: int
    size: int
    walk: Walk

    def parts(self, tensors: Sequence[Any]) -> tuple[State, GateProduct]:
        """The state before the first step, and the product."""
        return tuple(tensors[: self.states]), self.product(*tensors[self.states :])


def _formula(sequence: _Sequence, x: Tensor, *others: Any) -> tuple[Tensor, ...]:
    return _with_noise(sequence, sequence.parts(others)[1].noise(x), x, *others)


def _with_noise(sequence: _Sequence, eps: Tensor | None, x: Tensor, *others: Any) -> tuple[Tensor, ...]:
    """The plain formula, for these random numbers."""
    state, product = sequence.parts(others)
    outputs, last = unrolled(sequence.gates.step, product.each(x, eps), None, state, sequence.walk)
    return outputs, *last


def _used(used: Sequence[bool], *arguments: Any) -> Tensor:
    """The outputs of the formula that are used, in one row."""
    outputs = zip(_with_noise(*arguments), used, strict=True)
    return torch.cat([output.flatten() for output, its in outputs if its])


class _Recurrence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, sequence: _Sequence, *tensors: Any) -> tuple[Tensor, ...]:
        x, *others = tensors
        state, product = sequence.parts(others)
        with no_autocast(x):
            course = _run(sequence, x, state, product, ctx is not None)
        if ctx is not None:
            ctx.sequence = sequence
            ctx.set_materialize_grads(False)
            ctx.save_for_backward(*course, *tensors)
        last = sequence.walk.last
        outputs = sequence.walk.after(course.rows)[..., x.shape[-1] :].clone(memory_format=torch.contiguous_format)
        return outputs, *(each[last].clone() for each in (outputs, course.cells) if each is not None)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        given = [grad for grad in grads if grad is not None]
        if not given:
            return (None,) * len(ctx.needs_input_grad)
        with no_autocast(given[0]):
            return None, *_gradients(ctx, grads, any(map(by_formula, given)))


def _gradients(ctx: Any, grads: Sequence[Tensor | None], differentiable: bool) -> list[Tensor | None]:
    sequence, needs, saved = ctx.sequence, ctx.needs_input_grad[1:], ctx.saved_tensors
    course, (x, *others) = _Course(*saved[:4]), saved[4:]
    product, rows = sequence.parts(others)[1], sequence.walk.before(course.rows)
    if differentiable:
        with torch.no_grad():
            eps = product.eps(rows, course.noise)
        used = [grad is not None for grad in grads]
        row = torch.cat([grad.reshape(-1) for grad in grads if grad is not None])  # flatten knows no batched gradients
        return gradients(partial(_used, used, sequence, eps), [x, *others], needs, row)
    of_y, of_state = _back(sequence, course, product, grads)
    of_x = product.back(slice(0, x.shape[-1]))(of_y, rows, course.noise) if needs[0] else None
    return [of_x, *of_state, *product.gradients(of_y, rows, course.noise, needs[1 + sequence.states :])]


class _Course(NamedTuple):
    """What is written on the way through a sequence.

    Attributes:
        rows: input and hidden state before each step, and the state after the last.
        cells: likewise, of an LSTM.
        y: the pre-activations, and then the gates.
        noise: random numbers, and then what the product makes of them.
    """

    rows: Tensor
    cells: Tensor | None
    y: Tensor
    noise: Tensor | None

    def states(self, sequence: _Sequence) -> list[Tensor]:
        """Those before each step, and after the last."""
        hidden = self.rows[..., -sequence.size :]
        return [hidden] if self.cells is None else [hidden, self.cells]


def _run(sequence: _Sequence, x: Tensor, state: State, product: GateProduct, keeps: bool) -> _Course:
    """The way through the sequence. Where nothing is to be kept, all cells have one place, and all gates another."""
    gates, walk, (steps, total, width) = sequence.gates, sequence.walk, x.shape
    rows = x.new_empty(steps + 1, total, width + sequence.size)
    walk.before(rows)[..., :width] = x
    cells = state[1].new_empty(steps + 1 if keeps else 1, *state[1].shape) if len(state) > 1 else None
    y = x.new_empty(steps if keeps and gates.keeps else 1, total, product.mean.shape[0])
    course = _Course(rows, cells, y, product.noise(x))
    for every, start in zip(course.states(sequence), state, strict=True):
        every[walk.first] = start
    write, places, its_rows = product.writer(x, keeps), _by_step(steps + 1, *course.states(sequence)), rows.unbind(0)
    its_views, its_noise = _by_step(steps, *gates.parts(y)), _by_step(steps, course.noise)
    for at, count in walk:
        before, after = walk.places(at)
        old, new, own, of_step = places[before], places[after], its_views[at], (its_rows[before], *its_noise[at])
        if count < total:
            for each, other in zip(new, old, strict=True):
                each[count:] = other[count:]
            old, new, of_step = _first(count, *old), _first(count, *new), _first(count, *of_step)
            own = gates.parts(own[0][:count])
        gates.forward_(partial(write, at, *of_step), own, old, new)
    return course


def _back(
    sequence: _Sequence, course: _Course, product: GateProduct, grads: Sequence[Tensor | None]
) -> tuple[Tensor, list[Tensor]]:
    """The gradients of the pre-activations of all steps, and of the state before the first."""
    gates, walk, (of_outputs, *of_last) = sequence.gates, sequence.walk, grads
    steps, total, states = len(walk.sizes), course.rows.shape[1], course.states(sequence)
    of_y = course.y.new_empty(steps, total, course.y.shape[-1])
    slopes = gates.slopes(course.y, [*map(walk.before, states)], [*map(walk.after, states)], of_y)
    of_state = [of_y.new_zeros(total, sequence.size) if each is None else each.clone() for each in of_last]
    way, its_slopes = product.back(slice(-sequence.size, None)), _by_step(steps, *slopes)
    its_others = _by_step(steps, of_y, walk.before(course.rows), course.noise)
    for at, count in reversed(list(walk)):
        now, own, of_step = tuple(of_state), its_slopes[at], its_others[at]
        if of_outputs is not None:
            of_state[0].add_(of_outputs[at])
        if count < total:
            of_y[at, count:] = 0
            now, own, of_step = _first(count, *now), _first(count, *own), _first(count, *of_step)
        past = gates.back_(now, own)
        of_h = way(*of_step)
        of_h = of_h if past is None else of_h.add_(past)
        if count < total:
            now[0].copy_(of_h)
        else:
            of_state[0] = of_h
    return of_y, of_state


def _by_step(steps: int, *tensors: Tensor | None) -> list[tuple[Any, ...]]:
    """The tensors at each step; where one has a single place for all of them, that."""
    views = ([None] * steps if each is None else each.unbind(0) for each in tensors)
    return list(zip(*(each if len(each) == steps else [*each] * steps for each in views), strict=True))


def _first(count: int, *tensors: Tensor | None) -> tuple[Any, ...]:
    return tuple(None if each is None else each[:count] for each in tensors)
