"""nn.RNN, nn.LSTM, nn.GRU and their cells."""

from __future__ import annotations

import copy
import io
import itertools
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.utils.checkpoint import checkpoint

import bayesify
from bayesify.nn import FlipoutLSTM
from bayesify.nn.settings import Method
from bayesify.nn.state import fan_in, weight_names
from bayesify.posterior import Parameterization

from ..support import (
    METHODS,
    PARAMETERIZATIONS,
    as_if_compiling,
    draws,
    fixed_noise,
    judge,
    judge_mean,
    judge_moments,
    noisy,
    quiet,
    variational,
)

SEQUENCES = {
    "rnn": lambda **options: nn.RNN(3, 4, **options),
    "relu": lambda **options: nn.RNN(3, 4, nonlinearity="relu", **options),
    "lstm": lambda **options: nn.LSTM(3, 4, **options),
    "projected": lambda **options: nn.LSTM(3, 4, proj_size=2, **options),
    "gru": lambda **options: nn.GRU(3, 4, **options),
}  # fmt: skip
CELLS = {
    "rnn cell": lambda **options: nn.RNNCell(3, 4, **options),
    "relu cell": lambda **options: nn.RNNCell(3, 4, nonlinearity="relu", **options),
    "lstm cell": lambda **options: nn.LSTMCell(3, 4, **options),
    "gru cell": lambda **options: nn.GRUCell(3, 4, **options),
}  # fmt: skip
ALL = SEQUENCES | CELLS
FORMS = ["padded", "single", "packed", "unsorted"]
SMALL = 1e-3  # a std at which outputs are linear in the noise


def tensors(output: Any) -> list[Tensor]:
    """All tensors of an output, PackedSequences by their rows."""
    if isinstance(output, PackedSequence):
        return [output.data]
    return [output] if isinstance(output, Tensor) else [each for part in output for each in tensors(part)]


def flat(output: Any) -> Tensor:
    return torch.cat([each.flatten() for each in tensors(output)])


def inputs_for(plain: Any, form: str, with_state: bool) -> tuple[Any, ...]:
    """Three sequences of up to five steps, or one, in the layer's dtype; for cells, three examples or one."""
    dtype = next(plain.parameters()).dtype
    cell = isinstance(plain, nn.RNNCellBase)
    examples = () if form == "single" else (3,)
    if form in ("padded", "single"):
        shape = (*examples, 3) if cell else (5, *examples, 3)
        x: Any = torch.randn(shape, dtype=dtype)
        x = x.transpose(0, 1) if form == "padded" and not cell and plain.batch_first else x
    else:
        lengths = [5, 3, 3] if form == "packed" else [2, 5, 1]
        sequences = [torch.randn(length, 3, dtype=dtype) for length in lengths]
        x = pack_sequence(sequences, enforce_sorted=form == "packed")
    if not with_state:
        return (x,)
    count = () if cell else (plain.num_layers * (2 if plain.bidirectional else 1),)
    sizes = [getattr(plain, "proj_size", 0) or 4, 4] if isinstance(plain, nn.LSTM | nn.LSTMCell) else [4]
    states = tuple(torch.randn(*count, *examples, size, dtype=dtype) for size in sizes)
    return x, states if len(states) > 1 else states[0]


def options_of(kind: str) -> Iterator[dict[str, Any]]:
    if kind in CELLS:
        yield from ({"bias": bias} for bias in (False, True))
        return
    for layers, both, first, bias in itertools.product((1, 2), (False, True), (False, True), (False, True)):
        for dropout in (0.0, 1.0)[:layers]:  # all or nothing is dropped: known without the generator
            yield {
                "num_layers": layers, "bidirectional": both, "batch_first": first, "bias": bias, "dropout": dropout
            }  # fmt: skip


def set_std(layer: Any, std: float) -> None:
    for name in layer.means():
        layer.set_std(name, std)


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
        layer.bias_ih.data, plain.bias_ih.data = (each.bias_ih.data + 1 for each in (layer, plain))  # so that relu passes
    for training in (True, False):
        outputs = []
        for each in (plain.train(training), layer.train(training)):
            torch.manual_seed(3)
            with quiet(layer):
                outputs.append(flat(each(*inputs)))
        assert torch.equal(*outputs)
        assert not torch.equal(flat(layer(*inputs)), flat(layer(*inputs)))
    assert isinstance(layer, type(plain))


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
    return torch.cat([each.flatten() for each in (of_rows, *(torch.arange(3)[:, None].expand_as(s) for s in states))])


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
    ("method", "signs", "shared"), [("flipout", "example", True), ("flipout", "position", False), ("lrt", "example", False)]
)
@pytest.mark.parametrize("kind", ["rnn", "lstm", "projected", "gru"])
def test_what_the_steps_share(kind: str, method: Method, signs: Any, shared: bool) -> None:
    """Every part of the noise is the same at both steps of a sequence that repeats, or of neither."""
    plain = SEQUENCES[kind]().double()
    layer = variational(plain, method, noisy(signs=signs))
    x, h = torch.randn(1, 2, 3).double(), torch.randn(1, 2, 2 if kind == "projected" else 4).double()
    state = (h, torch.randn(1, 2, 4).double()) if isinstance(plain, nn.LSTM) else h
    for noisy_name in layer.means():
        set_std(layer, 1e-12)
        layer.set_std(noisy_name, 0.1)
        held = _two_steps_from(layer, x, state)
        assert torch.allclose(*held, rtol=0, atol=1e-9) == shared, noisy_name


def _two_steps_from(layer: Any, x: Tensor, state: Any) -> tuple[Tensor, Tensor]:
    """The output of each of two steps that see the same input and the same state before them."""
    from bayesify.nn import recurrence

    step = recurrence.STEPS[layer.mode]

    def from_start(inputs: Tensor, hidden: Any, _: Any) -> Any:
        return step(inputs, hidden, tuple(each[0] for each in (state if isinstance(state, tuple) else (state,))))

    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(recurrence.STEPS, layer.mode, from_start)
        output, _ = layer(x.expand(2, -1, -1))
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
    return [*(each.requires_grad_() for each in tensors(inputs)), *layer.parameters()]


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
    leaves = [each for each in (*tensors(state), *layer.parameters()) if each.requires_grad_() is not None]

    def outcome(call: Callable[..., Any] = layer) -> list[Tensor]:
        torch.manual_seed(2)
        output = flat(call(x, state))
        torch.randn(7)  # what happens in between must not matter
        return [output, *torch.autograd.grad(output.square().sum(), leaves)]

    eager = outcome()
    with as_if_compiling():
        torch.testing.assert_close(outcome(), eager)
    torch.testing.assert_close(outcome(lambda *args: checkpoint(layer, *args, use_reentrant=False)), eager)


def test_a_step_keeps_no_more_than_its_state() -> None:
    """Of 20 steps more, the backward pass keeps 20 inputs and 20 states more, and no product of a state with signs."""
    kept = {}
    for steps in (10, 30):
        layer, x = variational(nn.RNN(64, 64), "flipout"), torch.randn(steps, 8, 64)
        seen: dict[int, Any] = {}
        with torch.autograd.graph.saved_tensors_hooks(
            lambda each, seen=seen: seen.setdefault(each.untyped_storage().data_ptr(), each), lambda each: each  # noqa: B023
        ):
            layer(x)
        kept[steps] = sum(each.untyped_storage().nbytes() for each in seen.values())
    assert kept[30] - kept[10] <= 20 * 8 * (64 + 64) * 4


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ALL)
def test_kl_counts_every_matrix_once(kind: str, method: Method) -> None:
    options = {} if kind in CELLS else {"num_layers": 2, "bidirectional": True}
    policy = {"method": method, "bias": "variational", "prior": {"mean": 0.0, "std": 0.7}}
    model = bayesify.convert(nn.ModuleDict({"a": ALL[kind](**options)}), policy)
    expected = torch.zeros((), dtype=torch.float64)
    layer: Any = model["a"]
    for name, mean in ALL[kind](**options).named_parameters():
        q = torch.distributions.Normal(getattr(layer, name).double(), F.softplus(getattr(layer, f"{name}_rho").double()))
        assert getattr(layer, f"{name}_rho").shape == mean.shape
        expected = expected + torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 0.7)).sum()
    torch.testing.assert_close(model.kl().double(), expected, rtol=1e-5, atol=0)
    model.kl.reset()
    assert model.kl(reached=True) == 0
    for _ in range(2):
        layer(*inputs_for(layer, "padded", False))
    torch.testing.assert_close(model.kl(reached=True), model.kl())


def test_fan_in_of_a_bias_is_that_of_its_matrix() -> None:
    layer = nn.LSTM(3, 5, 2, proj_size=2)
    assert [fan_in(layer, name) for name in weight_names(layer)] == [3, 2, 5, 2, 2, 5]
    assert [fan_in(layer, f"bias_{part}_l0") for part in ("ih", "hh")] == [3, 2]
    assert [fan_in(nn.GRUCell(3, 5), f"{what}_{part}") for what in ("weight", "bias") for part in ("ih", "hh")] == [3, 5] * 2


def copied(layer: Any, way: str) -> Any:
    if way == "deepcopy":
        return copy.deepcopy(layer)
    if way == "pickle":
        return pickle.loads(pickle.dumps(layer))
    if way == "state_dict":
        twin = copy.deepcopy(layer)
        for parameter in twin.parameters():
            parameter.data.zero_()
        twin.load_state_dict(layer.state_dict())
        return twin
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("way", ["deepcopy", "pickle", "weights_only", "state_dict"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ALL)
def test_copies(kind: str, method: Method, way: str) -> None:
    layer = variational(ALL[kind](), method)
    inputs, twin, outputs = inputs_for(layer, "padded", True), copied(layer, way), []
    for each in (layer, twin):
        torch.manual_seed(6)
        with quiet(each):
            outputs.append(flat(each(*inputs)))
        outputs.append(flat(each(*inputs)))
    assert type(twin) is type(layer)
    assert torch.equal(outputs[0], outputs[2])
    assert torch.equal(outputs[1], outputs[3])
    assert torch.equal(twin.kl_divergence(), layer.kl_divergence())
    assert not {id(each) for each in twin.parameters()} & {id(each) for each in layer.parameters()}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", SEQUENCES)
def test_flat_weights_are_the_plain_layers(kind: str, method: Method) -> None:
    """torch's fused kernel reads a list of its own: the means are in it, still after every move, and nothing else."""
    plain = SEQUENCES[kind](num_layers=2)
    layer = bayesify.convert(plain, method, inplace=True)
    inputs = inputs_for(layer, "padded", True)
    for each in (layer, copied(layer, "deepcopy"), copied(layer, "weights_only"), layer.double(), layer.float()):
        assert each._flat_weights_names == [name for name, _ in each.named_parameters() if not name.endswith("_rho")]
        assert all(a is getattr(each, b) for a, b in zip(each._flat_weights, each._flat_weights_names, strict=True))
        each.flatten_parameters()
    layer.load_state_dict({name: 2 * value for name, value in layer.state_dict().items()}, assign=True)
    with bayesify.posterior_mean(layer):
        doubled = flat(layer(*inputs))
    reverted = bayesify.revert(layer)
    assert type(reverted) is type(SEQUENCES[kind]())
    assert reverted.state_dict().keys() == SEQUENCES[kind](num_layers=2).state_dict().keys()
    assert torch.equal(flat(reverted(*inputs)), doubled)
    sample = bayesify.revert(layer, "sample")
    assert not torch.equal(flat(sample(*inputs)), doubled)


def test_reset_parameters_starts_means_as_torch_does_and_scales_around_them() -> None:
    layers: list[Any] = [nn.LSTM(3, 4), FlipoutLSTM(3, 4)]
    for layer in layers:
        torch.manual_seed(4)
        layer.reset_parameters()
    assert torch.equal(layers[0].weight_hh_l0, layers[1].weight_hh_l0)
    before = layers[1].weight_hh_l0_rho.clone()
    layers[1].reset_posterior()
    assert torch.equal(before, layers[1].weight_hh_l0_rho)


@pytest.mark.parametrize("backward_inside", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ALL)
def test_autocast(kind: str, method: Method, dtype: torch.dtype, backward_inside: bool) -> None:
    plain = ALL[kind]()
    layer, inputs = variational(plain, method), inputs_for(plain, "padded", True)
    with torch.autocast("cpu", dtype):
        output = layer(*inputs)
        if backward_inside:
            flat(output).float().sum().backward()
    if not backward_inside:
        flat(output).float().sum().backward()
    assert all(each.grad.isfinite().all() and each.grad.dtype is torch.float32 for each in layer.parameters())
    assert flat(output).isfinite().all()
    if kind not in ("gru", "projected") and dtype is torch.bfloat16:  # these two have no fused kernel on CPUs
        with torch.autocast("cpu", dtype):
            assert [each.dtype for each in tensors(output)] == [each.dtype for each in tensors(plain(*inputs))]


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
@pytest.mark.parametrize(("kind", "inputs"), WRONG, ids=str)
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
    compiled(tokens).sum().backward()
    assert model.lstm.weight_hh_l1_rho.grad.abs().max() > 0


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
    with pytest.raises(bayesify.BayesifyError, match="reads the weight beside it"):
        bayesify.register(Reads, like=nn.LSTM)
