"""The one autograd Function over a whole sequence: what autograd makes of the plain steps, it computes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.utils.rnn import pack_sequence

import bayesify
from bayesify.nn.settings import Method
from tests.support import METHODS, as_if_compiling, draws, fixed_noise, judge_moments, noisy, variational

from .recurrent import FORMS, SEQUENCES, SMALL, flat, inputs_for, set_std, tensors
from .test_recurrent_noise import Flat, exact_covariance

KINDS = ["rnn", "relu", "lstm", "gru"]


def outcome(layer: Any, x: Any, state: Any, used: slice, create_graph: bool = False) -> list[Tensor]:
    """These outputs, and their gradients in everything."""
    leaves = [*(each for each in tensors((x, state)) if each.requires_grad), *layer.parameters()]
    outputs = tensors(layer(x, state))[used]
    total = torch.stack([output.sin().sum() for output in outputs]).sum()
    return [*outputs, *torch.autograd.grad(total, leaves, create_graph=create_graph)]


@pytest.mark.parametrize("large", [0, 2**18], ids=["large", "small"])
@pytest.mark.parametrize("form", ["padded", "packed", "unsorted"])
@pytest.mark.parametrize("used", [slice(0, 1), slice(1, 2), slice(-1, None)], ids=["outputs", "h", "last"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", KINDS)
def test_each_output_alone_has_the_plain_steps_gradients(
    kind: str, method: Method, used: slice, form: str, large: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bayesify.estimators.gate_products._LARGE", large)
    layer = variational(SEQUENCES[kind](bidirectional=True).double(), method)
    x, state = inputs_for(layer, form, True)
    for each in tensors((state, x) if form == "padded" else state):
        each.requires_grad_()
    with fixed_noise():
        own = outcome(layer, x, state, used)
        with as_if_compiling():
            expected = outcome(layer, x, state, used)
    torch.testing.assert_close(own, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("form", ["padded", "packed"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", KINDS)
def test_second_derivatives_are_the_plain_steps(kind: str, method: Method, form: str) -> None:
    layer = variational(SEQUENCES[kind]().double(), method)
    x, state = inputs_for(layer, form, True)
    for each in tensors(state):
        each.requires_grad_()

    def second() -> list[Tensor]:
        penalty = torch.stack([each.square().sum() for each in outcome(layer, x, state, slice(None), True)]).sum()
        return list(torch.autograd.grad(penalty, [*tensors(state), *layer.parameters()]))

    with fixed_noise():
        own = second()
        with as_if_compiling():
            torch.testing.assert_close(own, second(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", KINDS)
def test_torch_func_and_many_gradients_at_once(kind: str, method: Method) -> None:
    """torch.func.grad, vmap over examples of it, and autograd's batched gradients are those of one after the other."""
    layer = variational(SEQUENCES[kind]().double(), method)
    parameters, x = dict(layer.named_parameters()), torch.randn(9, 3, 3).double()

    def loss(given: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(layer, given, (x,))[0].sin().sum()

    with fixed_noise():
        (found,) = [grad(loss)(parameters, x)]
        expected = torch.autograd.grad(loss(parameters, x), list(parameters.values()))
        torch.testing.assert_close(list(found.values()), list(expected))
        each = vmap(grad(loss), (None, 1))(parameters, x)
        alone = [grad(loss)(parameters, x[:, at]) for at in range(3)]
        torch.testing.assert_close(each, {name: torch.stack([one[name] for one in alone]) for name in each})
        output = layer(x)[0]
        directions = torch.randn(4, *output.shape).double()
        many = torch.autograd.grad(output, layer.weight_hh_l0, directions, retain_graph=True, is_grads_batched=True)
        one = [torch.autograd.grad(output, layer.weight_hh_l0, each, retain_graph=True)[0] for each in directions]
        torch.testing.assert_close(many[0], torch.stack(one))


@pytest.mark.parametrize("bias", ["deterministic", "variational"])
@pytest.mark.parametrize("kind", KINDS)
def test_lrt_has_the_law_of_the_pre_activations(kind: str, bias: Any) -> None:
    """Of one step: every output has the variance that a draw of the weights gives it, and is independent of others."""
    plain = SEQUENCES[kind]().double()
    layer = variational(plain, "lrt", noisy(bias=bias))
    x, state = inputs_for(plain, "padded", True)
    inputs = x[:1], state
    set_std(layer, SMALL)
    layer.set_std("weight_ih_l0", 2 * SMALL)
    expected = flat(plain(*inputs))
    unit = torch.cat([torch.arange(12)] * len(tensors(plain(*inputs))))  # h and c of one unit share their gates
    exact = exact_covariance(plain, layer, inputs) * (unit[:, None] == unit)
    judge_moments(draws(Flat(layer, *inputs), 4000), expected.detach(), exact)


@pytest.mark.parametrize("kind", KINDS)
def test_no_variance_is_no_noise_and_no_gradient_of_it(kind: str) -> None:
    """LRT, input and state zero: the mean goes on, and sqrt's slope at zero is left out."""
    plain = SEQUENCES[kind](bias=False).double()
    layer, x = variational(plain, "lrt"), torch.zeros(3, 2, 3, dtype=torch.float64, requires_grad=True)
    output, _ = layer(x)
    assert torch.equal(output, plain(x)[0])
    output.sum().backward()
    for each in (x, *layer.parameters()):
        assert each.grad is not None
        assert each.grad.isfinite().all()
    assert layer.weight_ih_l0_rho.grad.abs().max() == 0


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_output_is_the_users_to_write_to(kind: str, method: Method) -> None:
    layer, x = variational(SEQUENCES[kind](), method), torch.randn(5, 3, 3)
    for context in (torch.enable_grad(), torch.no_grad()):
        with context:
            torch.manual_seed(1)
            expected, (last, *_) = layer(x)[0], tensors(layer(x)[1])
            torch.manual_seed(1)
            output, _ = layer(x)
        output += layer.weight_hh_l0.sum()
        last.mul_(2)
        torch.testing.assert_close(output, expected + layer.weight_hh_l0.sum())
        output.sum().backward()


@pytest.mark.parametrize("method", METHODS)
def test_frozen_weights_get_no_gradient_and_leave_others_as_they_are(method: Method) -> None:
    layer, x = variational(nn.LSTM(3, 4).double(), method), torch.randn(9, 3, 3).double().requires_grad_()
    grads = []
    for frozen in (False, True):
        for name, parameter in layer.named_parameters():
            parameter.requires_grad_(not frozen or name.startswith("weight_hh"))
        with fixed_noise():
            wanted = [x, layer.weight_hh_l0, layer.weight_hh_l0_rho]
            grads.append(torch.autograd.grad(layer(x)[0].sin().sum(), wanted))
    torch.testing.assert_close(*grads)


def test_a_graph_that_is_kept_gives_the_same_gradients_again() -> None:
    layer = variational(nn.LSTM(3, 4), "lrt")
    loss = layer(pack_sequence([torch.randn(3, 3), torch.randn(2, 3)]))[0].data.sum()
    first = torch.autograd.grad(loss, list(layer.parameters()), retain_graph=True)
    assert all(map(torch.equal, first, torch.autograd.grad(loss, list(layer.parameters()))))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("bias", ["deterministic", "variational"])
@pytest.mark.parametrize("kind", SEQUENCES)
def test_a_held_draw_is_the_same_by_torchs_kernel(kind: str, bias: Any, form: str) -> None:
    """Without gradients, torch's kernel computes with the draw; the steps do where gradients are wanted."""
    plain = SEQUENCES[kind](num_layers=2, bidirectional=True).double()
    layer = variational(plain, "flipout", noisy(bias=bias))
    inputs = inputs_for(layer, form, True)
    with bayesify.draw(layer, seed=1):
        by_steps = layer(*inputs)
        with torch.no_grad():
            by_kernel = layer(*inputs)
        assert all(map(torch.equal, layer._flat_weights, (getattr(layer, name) for name in layer._flat_weights_names)))
    torch.testing.assert_close(tensors(by_kernel), tensors(by_steps), rtol=1e-10, atol=1e-10)
    assert not torch.allclose(flat(by_kernel), flat(plain(*inputs)))
