"""nn.RNN, nn.LSTM, nn.GRU and their cells compute what torch's do, in every form of input."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

import bayesify
from bayesify.nn.settings import Method
from tests.support import (
    METHODS,
    fixed_noise,
    quiet,
    variational,
)

from .recurrent import ALL, CELLS, FORMS, SEQUENCES, flat, inputs_for, set_std


def options_of(kind: str) -> Iterator[dict[str, Any]]:
    if kind in CELLS:
        yield from ({"bias": bias} for bias in (False, True))
        return
    for layers, both, first, bias in itertools.product((1, 2), (False, True), (False, True), (False, True)):
        for dropout in (0.0, 1.0)[:layers]:  # all or nothing is dropped: known without the generator
            yield {
                "num_layers": layers, "bidirectional": both, "batch_first": first, "bias": bias, "dropout": dropout
            }  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("kind", "form"), [*itertools.product(SEQUENCES, FORMS), *itertools.product(CELLS, FORMS[:2])])
def test_with_next_to_no_noise_it_is_the_plain_layer(method: Method, kind: str, form: str) -> None:
    for options, with_state in itertools.product(options_of(kind), (False, True)):
        plain = ALL[kind](**options).double()
        layer, inputs = variational(plain, method), inputs_for(plain, form, with_state)
        set_std(layer, 1e-12)
        output, expected = layer(*inputs), plain(*inputs)
        torch.testing.assert_close(output, expected, rtol=1e-9, atol=1e-9, msg=lambda text: f"{options}: {text}")  # noqa: B023
        assert not torch.equal(flat(output), flat(expected)) or options.get("dropout") or "relu" in kind
        if isinstance(inputs[0], PackedSequence):
            for of_output, of_input in zip(output[0][1:], inputs[0][1:], strict=True):
                assert of_output is of_input


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("kind", "form"), [*itertools.product(SEQUENCES, FORMS), *itertools.product(CELLS, FORMS[:2])])
def test_quiet_is_the_plain_layer(method: Method, kind: str, form: str) -> None:
    options = {} if kind in CELLS else {"num_layers": 2, "dropout": 0.5, "bidirectional": True}
    plain = ALL[kind](**options)
    layer, inputs = variational(plain, method), inputs_for(plain, form, True)
    if isinstance(plain, nn.RNNCell):
        for module in (plain, layer):
            module.bias_ih.data += 1.0  # so that relu is off its kink
    for training in (True, False):
        outputs = []
        for module in (plain.train(training), layer.train(training)):
            torch.manual_seed(3)
            with quiet(layer):
                outputs.append(flat(module(*inputs)))
        assert torch.equal(*outputs)
        assert not torch.equal(flat(layer(*inputs)), flat(layer(*inputs)))
    assert isinstance(layer, type(plain))


WRONG = [
    ("lstm", (torch.randn(5, 3, 2),)),
    ("lstm", (torch.randn(0, 3, 3),)),
    ("gru", (torch.randn(5, 3, 3), torch.randn(1, 1, 4))),
    ("lstm", (torch.randn(5, 3, 3), (torch.randn(1, 3, 4), torch.randn(1, 2, 4)))),
    ("rnn", (torch.randn(5, 3, 3).double(),)),
    ("gru cell", (torch.randn(3, 3), torch.randn(1, 4))),
    ("lstm cell", (torch.randn(2, 3, 3),)),
    ("rnn cell", (torch.randn(3, 3), torch.randn(3, 5))),
]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("kind", "inputs"), WRONG, ids=[f"{kind}-{at}" for at, (kind, _) in enumerate(WRONG)])
def test_what_torch_refuses_is_refused(kind: str, inputs: tuple[Any, ...], method: Method) -> None:
    plain = ALL[kind]()
    with pytest.raises((RuntimeError, ValueError)) as refused:
        plain(*inputs)
    with pytest.raises(type(refused.value)):
        variational(plain, method)(*inputs)


class LanguageModel(nn.Module):
    """Sequence-first, as torch's LSTM is by default."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Embedding(11, 8)
        self.lstm = nn.LSTM(8, 16, 2, dropout=0.1)
        self.decoder = nn.Linear(16, 11)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.decoder(self.lstm(self.encoder(tokens))[0])


@pytest.mark.parametrize("method", METHODS)
def test_a_language_model_trains(method: Method) -> None:
    plain = LanguageModel()
    model = bayesify.convert(plain, method)
    rows = {row.name: row for row in bayesify.plan(plain, method).converting()}
    assert rows["lstm"].becomes == {"flipout": "FlipoutLSTM", "lrt": "LRTLSTM"}[method]
    assert rows["lstm"].parameters_after - rows["lstm"].parameters_before == 4 * 16 * (8 + 16 + 16 + 16)
    tokens = (torch.arange(13)[:, None] * 2 + torch.arange(6)) % 11
    with bayesify.posterior_mean(model.eval()):
        assert torch.equal(model(tokens), plain.eval()(tokens))
    optimizer, losses = torch.optim.Adam(bayesify.param_groups(model.train(), lr=1e-2)), []
    for _ in range(60):
        loss = F.cross_entropy(model(tokens[:-1]).flatten(0, 1), tokens[1:].flatten()) + model.kl() / 1e6
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
    outputs = model.eval()(tokens), model(tokens)
    assert not torch.equal(*outputs)


def test_a_model_with_an_lstm_runs_compiled() -> None:
    """Dynamo leaves torch's recurrent layers to eager mode, whoever computes them."""
    model = bayesify.convert(LanguageModel().eval(), "flipout")
    torch._dynamo.reset()
    tokens = torch.arange(12).view(4, 3) % 11
    compiled = torch.compile(model, backend="aot_eager")
    with bayesify.posterior_mean(model):
        torch.testing.assert_close(compiled(tokens), model(tokens))
    assert not torch.equal(compiled(tokens), compiled(tokens))
    frames = torch._dynamo.utils.counters["frames"]["total"]
    assert compiled(tokens[:3]).shape == (3, 3, 11)
    assert torch._dynamo.utils.counters["frames"]["total"] < frames + 5  # nothing is unrolled for this length
    compiled(tokens).sum().backward()
    assert model.lstm.weight_hh_l1_rho.grad.abs().max() > 0


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", CELLS)
def test_cells_compile_to_one_graph(kind: str, method: Method) -> None:
    layer = variational(CELLS[kind](), method)
    inputs, outcomes = inputs_for(layer, "padded", True), []
    torch._dynamo.reset()
    with fixed_noise():
        for call in (layer, torch.compile(layer, fullgraph=True, backend="aot_eager")):
            output = flat(call(*inputs))
            outcomes.append([output, *torch.autograd.grad(output.square().sum(), list(layer.parameters()))])
    torch.testing.assert_close(outcomes[1], outcomes[0])


def test_a_registered_subclass_is_noisy_and_one_that_reads_its_weights_is_refused() -> None:
    class Output(nn.LSTM):
        def forward(self, input: Tensor, hx: Any = None) -> Any:
            return super().forward(input, hx)[0]

    class Reads(nn.LSTM):
        def forward(self, input: Tensor, hx: Any = None) -> Any:
            return super().forward(input, hx)[0] + self.weight_hh_l0.sum()

    bayesify.register(Output, like=nn.LSTM)
    layer = bayesify.convert(Output(3, 4), "flipout")
    assert not torch.equal(layer(torch.randn(2, 3)), layer(torch.randn(2, 3)))
    with pytest.raises(bayesify.BayesifyError, match="reads the weight too"):
        bayesify.register(Reads, like=nn.LSTM)
