"""The noise of recurrent layers: one draw per sequence, its gradients, and what the backward pass keeps for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.rnn import PackedSequence
from torch.utils.checkpoint import checkpoint

from bayesify.distributions.posterior import Parameterization
from bayesify.nn.settings import Method
from tests.support import (
    METHODS,
    PARAMETERIZATIONS,
    as_if_compiling,
    draws,
    fixed_noise,
    judge,
    judge_mean,
    judge_moments,
    noisy,
    variational,
)

from .recurrent import ALL, CELLS, SEQUENCES, SMALL, flat, inputs_for, set_std, tensors


def examples_of(output: Any, batch_first: bool, form: str) -> Tensor:
    """Which sequence each number of a flattened output belongs to."""
    rows, states = output[0], tensors(output[1])
    if isinstance(rows, PackedSequence):
        order = torch.arange(3) if rows.sorted_indices is None else rows.sorted_indices
        of_rows = torch.cat([order[:size] for size in rows.batch_sizes])[:, None].expand_as(rows.data)
    elif form == "single":
        return torch.zeros(flat(output).shape)
    else:
        shape = (-1, 1, 1) if batch_first else (1, -1, 1)
        of_rows = torch.arange(3).view(shape).expand_as(rows)
    return torch.cat([state.flatten() for state in (of_rows, *(torch.arange(3)[:, None].expand_as(s) for s in states))])


def exact_covariance(plain: nn.Module, layer: Any, inputs: tuple[Any, ...]) -> Tensor:
    """J diag(std²) Jᵀ with J the plain layer's Jacobian, if one draw of the weights served all."""
    total = torch.zeros(())
    for name in layer.means():
        def output(value: Tensor, name: str = name) -> Tensor:
            return flat(functional_call(plain, {name: value}, inputs))

        jacobian = torch.autograd.functional.jacobian(output, getattr(plain, name).detach()).flatten(1)  # type: ignore[no-untyped-call]
        scaled = jacobian * layer.std_of(name).detach().flatten()
        total = total + scaled @ scaled.T
    return total


class Flat(nn.Module):
    """Hands a vector out, so that draws can be stacked."""

    def __init__(self, layer: nn.Module, *inputs: Any) -> None:
        super().__init__()
        self.layer, self.inputs = layer, inputs

    def forward(self) -> Tensor:
        return flat(self.layer(*self.inputs))


COVARIANCE = [
    ("rnn", {"num_layers": 2, "bidirectional": True}, "padded"),
    ("relu", {"batch_first": True}, "padded"),
    ("lstm", {"num_layers": 2}, "padded"),
    ("lstm", {"bidirectional": True}, "unsorted"),
    ("projected", {"bidirectional": True, "batch_first": True}, "packed"),
    ("gru", {"batch_first": True, "num_layers": 2}, "padded"),
    ("gru", {"bidirectional": True}, "packed"),
    ("gru", {}, "single"),
]


@pytest.mark.parametrize("bias", ["deterministic", "variational"])
@pytest.mark.parametrize(("kind", "options", "form"), COVARIANCE, ids=str)
def test_flipout_has_one_draw_per_sequence_shared_over_time(
    kind: str, options: dict[str, Any], form: str, bias: str
) -> None:
    """All that comes of a sequence has the covariance of one weight draw; two sequences are uncorrelated."""
    plain = SEQUENCES[kind](**options).double()
    layer, inputs = variational(plain, "flipout", noisy(bias=bias)), inputs_for(plain, form, True)
    for name in layer.means():
        layer.scale_of(name).data = torch.log(SMALL * (0.5 + torch.rand_like(layer.scale_of(name))))
    expected = plain(*inputs)
    of = examples_of(expected, plain.batch_first, form)
    exact = exact_covariance(plain, layer, inputs) * (of[:, None] == of[None, :])
    judge_moments(draws(Flat(layer, *inputs), 3000), flat(expected).detach(), exact)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", CELLS)
def test_moments_of_a_cell(method: Method, kind: str) -> None:
    plain = CELLS[kind]().double()
    plain.bias_ih.data += 1.0  # so that relu is off its kink
    layer, inputs = variational(plain, method), inputs_for(plain, "padded", True)
    set_std(layer, SMALL)
    expected = plain(*inputs)
    of = torch.cat([torch.arange(12) // 4] * len(tensors(expected)))
    exact, samples = exact_covariance(plain, layer, inputs), draws(Flat(layer, *inputs), 3000)
    if method == "flipout":
        judge_moments(samples, flat(expected).detach(), exact * (of[:, None] == of[None, :]))
    noise, moving = samples - flat(expected).detach(), exact.diagonal() > 0
    judge_mean("variance", noise[:, moving].square() / exact.diagonal()[moving], 1.0)
    judge("mean", noise.mean(0), (exact.diagonal() / len(noise)).sqrt())
    assert moving.float().mean() > 0.5


@pytest.mark.parametrize(
    ("method", "signs", "shared"),
    [("flipout", "example", True), ("flipout", "position", False), ("lrt", "example", False)],
)
@pytest.mark.parametrize("kind", ["rnn", "lstm", "projected", "gru"])
def test_what_the_steps_share(kind: str, method: Method, signs: Any, shared: bool) -> None:
    """Every part of the noise is the same at both steps of a sequence that repeats, or of neither."""
    plain = SEQUENCES[kind]().double()
    layer = variational(plain, method, noisy(signs=signs))
    x, h = torch.randn(1, 8, 3).double(), torch.randn(1, 8, 2 if kind == "projected" else 4).double()
    state = (h, torch.randn(1, 8, 4).double()) if isinstance(plain, nn.LSTM) else h
    for noisy_name in layer.means():
        set_std(layer, 1e-12)
        layer.set_std(noisy_name, 0.1)
        held = _two_steps_from(layer, x, state)
        assert torch.allclose(*held, rtol=0, atol=1e-9) == shared, noisy_name


def _two_steps_from(layer: Any, x: Tensor, state: Any) -> tuple[Tensor, Tensor]:
    """The output of each of two steps that see the same input and the same state before them."""

    def from_start(step: Any, product: Any, project: Any, start: Any, walk: Any) -> Any:
        hidden = [step(product(at, start[0]), start)[0] for at, _ in walk]
        return torch.stack([h if project is None else project(h) for h in hidden]), start

    with pytest.MonkeyPatch.context() as patched, as_if_compiling():  # the plain formula
        for module in ("estimators.recurrence", "nn.recurrent_steps"):
            patched.setattr(f"bayesify.{module}.unrolled", from_start)
        output, _ = layer(x.expand(2, -1, -1), state)
    return output[0], output[1]


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ALL)
def test_noise_reaches_every_scale_from_the_output_alone(
    kind: str, method: Method, parameterization: Parameterization
) -> None:
    options = {} if kind in CELLS else {"num_layers": 2, "bidirectional": True}
    layer = variational(ALL[kind](**options), method, noisy(parameterization))
    output = layer(*inputs_for(layer, "padded", True))
    (output if isinstance(output, Tensor) else output[0]).square().sum().backward()
    assert len(layer.means()) == len([name for name, _ in layer.named_parameters()]) / 2
    for name in layer.means():
        assert layer.scale_of(name).grad.abs().max() > 0, name


def leaves_of(layer: Any, inputs: tuple[Any, ...]) -> list[Tensor]:
    return [*(x.requires_grad_() for x in tensors(inputs)), *layer.parameters()]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ALL)
def test_gradients_of_fixed_noise(kind: str, method: Method) -> None:
    layer = variational(ALL[kind](**({} if kind in CELLS else {"bidirectional": True})).double(), method)
    inputs = inputs_for(layer, "padded", True)
    names, sizes = [name for name, _ in layer.named_parameters()], len(tensors(inputs))

    def output(*given: Tensor) -> Tensor:
        torch.manual_seed(2)
        state = given[1:sizes] if sizes > 2 else given[1]
        return flat(functional_call(layer, dict(zip(names, given[sizes:], strict=True)), (given[0], state)))

    leaves = leaves_of(layer, inputs)
    assert torch.autograd.gradcheck(output, leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(output, leaves, fast_mode=True)


@pytest.mark.parametrize("form", ["padded", "unsorted"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", SEQUENCES)
def test_compiled_formula_and_checkpointing_are_the_eager_one(kind: str, method: Method, form: str) -> None:
    layer = variational(SEQUENCES[kind](num_layers=2, bidirectional=True, dropout=0.5).double(), method)
    x, state = inputs_for(layer, form, True)
    leaves = [tensor.requires_grad_() for tensor in (*tensors(state), *layer.parameters())]

    def outcome(call: Callable[..., Any] = layer) -> list[Tensor]:
        torch.manual_seed(2)
        output = flat(call(x, state))
        torch.randn(7)  # what happens in between must not matter
        return [output, *torch.autograd.grad(output.square().sum(), leaves)]

    eager = outcome()
    torch.testing.assert_close(outcome(lambda *args: checkpoint(layer, *args, use_reentrant=False)), eager)
    with fixed_noise():  # eager code draws signs in other ways
        eager = outcome()
        with as_if_compiling():
            torch.testing.assert_close(outcome(), eager)


@pytest.mark.parametrize(("kind", "numbers"), [(nn.RNN, 3 * 64), (nn.LSTM, 8 * 64), (nn.GRU, 7 * 64)])
def test_a_step_keeps_its_gates_and_its_state(kind: Any, numbers: int) -> None:
    """The backward pass keeps the input (twice), the state and the gates, and no product of one of them with signs."""
    kept = {}
    for steps in (10, 30):
        layer, x = variational(kind(64, 64), "flipout"), torch.randn(steps, 8, 64)
        seen: dict[int, Any] = {}
        with torch.autograd.graph.saved_tensors_hooks(
            lambda each, seen=seen: seen.setdefault(each.untyped_storage().data_ptr(), each), lambda each: each
        ):
            layer(x)
        kept[steps] = sum(value.untyped_storage().nbytes() for value in seen.values())
    assert kept[30] - kept[10] <= 20 * 8 * numbers * 4
