"""What recurrent layers are made of: gates, products that serve many steps of a sequence, and where its steps lie."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..estimators import noise
from ..estimators.eager import transforming
from ..estimators.precision import autocasted, without_autocast
from ..estimators.products import LinearProduct
from .folded_batches import fold_of
from .held_draws import Spread

if TYPE_CHECKING:
    from .base import Variational

State = tuple[Tensor, ...]  # (h,), or an LSTM's (h, c)


@dataclass(frozen=True, eq=False)  # Dynamo hashes what is called, even while it is being made
class StepwiseProduct:
    """y = x Wᵀ + b by the layer's estimator, with noise of its own at every call, or with the draws that are held."""

    layer: Variational
    mean: Tensor
    spread: Spread
    bias: Tensor | None
    bias_spread: Spread | None

    def __call__(self, x: Tensor, onto: Tensor | None = None, batch_dim: int = 0) -> Tensor:
        """The product, on top of `onto`, which holds the bias already; without it, the product plus the bias."""
        bias = self.bias if onto is None else None
        posterior = self.mean, self.spread, bias, self.bias_spread
        y = self.layer.multiply(LinearProduct(), [x], *posterior, batch_dim=batch_dim)
        return y if onto is None else onto + y


@dataclass(frozen=True, eq=False)
class DrawnProduct:
    """y = x Wᵀ + b with the one draw that is held: computed once, and not for each step."""

    weight: Tensor
    bias: Tensor | None

    def __call__(self, x: Tensor, onto: Tensor | None = None, batch_dim: int = 0) -> Tensor:
        """As StepwiseProduct; the same wherever the examples are."""
        return F.linear(x, self.weight, self.bias) if onto is None else onto + F.linear(x, self.weight)


@dataclass(frozen=True, eq=False)
class HeldProduct:
    """y = x Wᵀ + r∘((x∘s) ΔWᵀ) + b, where ΔW and each example's signs r and s are the same at every call.

    Attributes:
        mean, delta: W and ΔW, transposed: (in, out).
        of_output, of_input: r (examples, out) and s (examples, in).
        bias: (examples, out), with its noise; None where there is none.
    """

    mean: Tensor
    delta: Tensor
    of_output: Tensor
    of_input: Tensor
    bias: Tensor | None

    def __call__(self, x: Tensor, onto: Tensor | None = None) -> Tensor:
        """The product for the first len(x) examples, on top of `onto`, as StepwiseProduct has it."""
        count = x.shape[0]
        if onto is None and self.bias is not None:
            onto = self.bias[:count]
        step: Callable[..., Tensor] = _held_step if torch.compiler.is_compiling() or transforming() else _HeldStep.apply
        return step(onto, x, self.mean, self.delta, self.of_output[:count], self.of_input[:count])


Product = StepwiseProduct | DrawnProduct | HeldProduct


def stepwise(layer: Variational, name: str) -> StepwiseProduct | DrawnProduct:
    """The product with the matrix `name`, and with the bias of its name if there is one."""
    bias_name = name.replace("weight", "bias")
    bias_spread = None if layer.scale_of(bias_name) is None else layer.spread_of(bias_name)
    mean = layer.mean_of(name)
    spread = layer.spread_of(name, mean)
    bias: Tensor | None = layer._parameters.get(bias_name)
    if not isinstance(spread, tuple) or len(spread) > 1:
        return StepwiseProduct(layer, mean, spread, bias, bias_spread)
    bias = bias if bias is None or bias_spread is None else bias + bias_spread[0]
    return DrawnProduct(*autocasted(mean + spread[0], bias))


def over_time(layer: Variational, name: str, examples: int) -> Product:
    """The product for all steps of so many sequences: Flipout's one draw, or LRT's, which is anew at each step.

    Signs per position make Flipout's steps uncorrelated too, so that drawing anew is the same law.
    """
    drawn = stepwise(layer, name)
    if isinstance(drawn, DrawnProduct) or layer.method == "lrt" or layer._settings.signs == "position":
        return drawn
    std: Any = drawn.spread
    bias_std: Any = drawn.bias_spread
    if isinstance(std, tuple):
        return drawn
    delta = std * noise.normal_like(std)
    bias_delta = None if bias_std is None else bias_std * noise.normal_like(bias_std)
    mean, delta, bias, bias_delta = autocasted(drawn.mean, delta, drawn.bias, bias_delta)
    of_output, of_input = (_signs(layer, examples, size, delta) for size in delta.shape)
    if bias is not None:
        bias = bias.expand(examples, -1) if bias_delta is None else bias + of_output * bias_delta
    return HeldProduct(mean.T, delta.T, of_output, of_input, bias)


def _signs(layer: Variational, examples: int, size: int, like: Tensor) -> Tensor:
    """(examples, size), alike for what is folded into one of the model's examples."""
    fold = fold_of(layer, examples)
    shape = (fold.examples if fold else examples, size)
    signs = noise.signs(noise.sign_bits(shape, like), shape, like.dtype)
    return fold.spread(signs, 0, examples) if fold else signs


def _held_step(
    onto: Tensor | None, x: Tensor, mean: Tensor, delta: Tensor, of_output: Tensor, of_input: Tensor
) -> Tensor:
    y = x @ mean if onto is None else torch.addmm(onto, x, mean)
    return torch.addcmul(y, of_output, (x * of_input) @ delta)


class _HeldStep(torch.autograd.Function):
    """Keeps nothing of its own: x is a state, and all else serves the whole sequence."""

    generate_vmap_rule = True

    @staticmethod
    def forward(*args: Any) -> Tensor:
        return _held_step(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    @without_autocast
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, mean, delta, of_output, of_input = ctx.saved_tensors
        onto_needs, x_needs, mean_needs, delta_needs, *_ = ctx.needs_input_grad
        flipped = grad * of_output
        of_x = torch.addcmul(grad @ mean.T, flipped @ delta.T, of_input) if x_needs else None
        of_mean = x.T @ grad if mean_needs else None
        of_delta = (x * of_input).T @ flipped if delta_needs else None
        return grad if onto_needs else None, of_x, of_mean, of_delta, None, None


def lstm(inputs: Tensor, hidden: Product, state: State) -> State:
    """nn.LSTM's step; `inputs` is the input's part of the gates, with both biases."""
    h, c = state
    i, f, g, o = hidden(h, inputs).chunk(4, dim=1)
    c = torch.addcmul(torch.sigmoid(f) * c, torch.sigmoid(i), torch.tanh(g))
    return torch.sigmoid(o) * torch.tanh(c), c


def gru(inputs: Tensor, hidden: Product, state: State) -> State:
    """nn.GRU's step; the hidden part keeps its own bias, since the reset gate multiplies it too."""
    (h,) = state
    of_h = hidden(h)
    size = h.shape[1]
    r, z = torch.sigmoid(inputs[:, : 2 * size] + of_h[:, : 2 * size]).chunk(2, dim=1)
    n = torch.tanh(torch.addcmul(inputs[:, 2 * size :], r, of_h[:, 2 * size :]))
    return (torch.addcmul(n, z, h - n),)


def tanh(inputs: Tensor, hidden: Product, state: State) -> State:
    """nn.RNN's step; `inputs` is the input's part, with both biases."""
    return (torch.tanh(hidden(state[0], inputs)),)


def relu(inputs: Tensor, hidden: Product, state: State) -> State:
    """nn.RNN's step with nonlinearity="relu"."""
    return (torch.relu(hidden(state[0], inputs)),)


STEPS: dict[str, Callable[[Tensor, Product, State], State]] = {
    "LSTM": lstm, "GRU": gru, "RNN_TANH": tanh, "RNN_RELU": relu
}  # fmt: skip


def with_bias(mode: str, inputs: Tensor, hidden: Product) -> Tensor:
    """The input's part of the gates as the mode's step takes it."""
    return inputs if mode == "GRU" or hidden.bias is None else inputs + hidden.bias.to(inputs.dtype)


@dataclass(frozen=True)
class Layout:
    """Where the steps of a batch lie in rows (step after step, in each the sequences that are as long as that).

    Where all sequences are equally long, their rows are (steps, sequences, features) from the start: to fold and unfold
    the first two would tie an exported program to one size of the batch.

    Attributes:
        sizes: how many sequences there are at each step.
        padded: (steps, sequences), the row of each; behind a sequence's end, any row. None where all are equally long.
    """

    sizes: list[int]
    padded: Tensor | None = None

    @classmethod
    def packed(cls, batch_sizes: Tensor, device: torch.device) -> Layout:
        """Of a PackedSequence's rows."""
        sizes = batch_sizes.tolist()
        starts = torch.tensor([0, *accumulate(sizes)][:-1])
        within = torch.arange(sizes[0]).minimum(batch_sizes[:, None] - 1)
        return cls(sizes, (starts[:, None] + within).to(device))

    def spread(self, rows: Tensor) -> Tensor:
        """(rows, features) → (steps, sequences, features), with something behind the ends of short sequences."""
        if self.padded is None:
            return rows
        return rows.index_select(0, self.padded.flatten()).view(*self.padded.shape, rows.shape[1])


def run(
    mode: str, inputs: Tensor, hidden: Product, project: Product | None, state: State, layout: Layout, reverse: bool
) -> tuple[Tensor, State]:
    """One direction of one layer: the outputs, in rows as the layout has them, and the final state.

    A step that has fewer sequences than there are leaves the states of the others alone: forward they have ended, and
    in reverse they have yet to begin.
    """
    step, total = STEPS[mode], layout.sizes[0]
    steps = list(zip(with_bias(mode, inputs, hidden).unbind(0), layout.sizes, strict=True))
    outputs = []
    for given, size in reversed(steps) if reverse else steps:
        short = size < total
        now = tuple(part[:size] for part in state) if short else state
        h, *c = step(given[:size] if short else given, hidden, now)
        h = h if project is None else project(h)
        outputs.append(h)
        state = tuple(torch.cat([a, b[size:]]) for a, b in zip((h, *c), state, strict=True)) if short else (h, *c)
    joined = torch.stack if layout.padded is None else torch.cat
    return joined(outputs[::-1] if reverse else outputs), state
