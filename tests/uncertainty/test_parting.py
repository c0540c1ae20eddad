"""What is computed before the first noise is computed once for all draws, where two passes show that to be right."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bayesify
from bayesify.nn.base import Variational
from bayesify.uncertainty import passes
from bayesify.uncertainty.calls import Call
from bayesify.uncertainty.trials import examples_apart
from tests.support import METHODS, judge, judge_mean
from tests.uncertainty.linear_models import network


def parting_of(model: nn.Module, *inputs: Tensor) -> Variational | None:
    with torch.no_grad():
        return examples_apart(model, lambda call: [model(*call.args)], Call(inputs, {})).layer


class Backbone(nn.Module):
    """A network with a forward of its own, and a residual before its head."""

    def __init__(self, *head: nn.Module) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(6, 6, bias=False), nn.Sequential(*head)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.body(x).tanh()
        y: Tensor = self.head(x.flatten(1))
        return y


def converted(model: nn.Module, method: str) -> Any:
    """With noise that can be measured, and none in a backbone."""
    ignored = ["body"] if isinstance(model, Backbone) else []
    noisy = bayesify.convert(model, {"method": method, "ignore": ignored}).eval()
    bayesify.set_posterior_std(noisy, 0.2)
    return noisy


class Around(nn.Module):
    """Its layer, within a forward that is given."""

    def __init__(self, forward: Callable[[Any, Tensor], Tensor], layer: nn.Module | None = None) -> None:
        super().__init__()
        self.layer, self.given = layer or nn.Linear(6, 6), forward
        self.other = nn.Linear(6, 2)

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        return self.given(self, x, *others)


def _rows_seen(monkeypatch: pytest.MonkeyPatch, kind: type[nn.Module] = nn.Tanh) -> list[int]:
    """By a module that stands before the first noise."""
    rows: list[int] = []
    forward: Any = kind.forward

    def noting(self: Any, x: Tensor) -> Any:
        rows.append(len(x))
        return forward(self, x)

    monkeypatch.setattr(kind, "forward", noting)
    return rows


def _before(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Tanh(), nn.Dropout(0.5), *layers)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("chain", "shape", "draws"),
    [
        (_before(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 2)), (5,), 8),
        (nn.Sequential(_before(), nn.Sequential(nn.Flatten(), nn.Linear(6, 4)), nn.Linear(4, 2)), (3, 2), 8),
        (_before(nn.Conv1d(3, 4, 2), nn.Flatten(), nn.Linear(4, 2)), (3, 2), 4),
        (_before(nn.Linear(3, 4), nn.Flatten(), nn.Linear(8, 2)), (2, 3), 4),
        (Backbone(nn.Tanh(), nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2)), (6,), 8),
    ],
    ids=["linear", "nested", "conv", "sequence", "backbone"],
)
def test_the_start_is_computed_once(
    method: str, chain: nn.Module, shape: tuple[int, ...], draws: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each example is in rows of its own: of two alike and one of zeros, so does their spread tell."""
    model, rows = converted(chain, method), _rows_seen(monkeypatch)
    x = torch.stack([torch.zeros(shape), torch.ones(shape), torch.ones(shape)])
    found = bayesify.predict(model, x, samples=8, keep=True)
    assert rows[-1] == 3
    assert 3 * draws not in rows
    assert found.samples is not None
    assert len(found.samples.flatten(1).unique(dim=0)) == 8
    assert not torch.equal(found.samples[:, 1], found.samples[:, 2])
    assert (found.samples[:, 0].var(0) < found.samples[:, 1].var(0) * 30).all()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("examples", [1, 3])
def test_a_backbone_of_large_inputs_runs_once(method: str, examples: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inputs of which no two would go into a pass of several draws."""
    monkeypatch.setattr(passes, "MOST_NUMBERS", 1)
    backbone = Backbone(nn.Tanh(), nn.Linear(6, 2))
    model, rows = converted(backbone, method), _rows_seen(monkeypatch)
    assert bayesify.predict(model, torch.randn(examples, 6), samples=30, keep=True).samples.shape == (30, examples, 2)
    assert [count for count in rows[2:] if count == examples] == rows[-1:]


@pytest.mark.parametrize("method", METHODS)
def test_the_largest_tensor_after_parting_says_how_many_draws_a_pass_has(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A view of a larger weight is none."""
    monkeypatch.setattr(passes, "MOST_AFTER_PARTING", 220)
    model, rows = converted(Backbone(nn.Linear(6, 40), nn.Linear(40, 40), nn.Linear(40, 2)), method), []
    model.head.register_forward_hook(lambda module, args, output: rows.append(len(output)))
    bayesify.predict(model, torch.randn(1, 6), samples=12)
    assert rows == [1, 6, 5, 5, 2]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("own", [False, True])
def test_draws_of_many_examples_share_a_pass(method: str, own: bool) -> None:
    """Where structure says that they may, and where a trial is little beside them."""
    layer, rows = nn.Linear(6, 2), []
    model = converted(Around(lambda model, x: model.layer(x), layer) if own else nn.Sequential(layer), method)
    estimate = model.layer.estimate if own else model[0].estimate

    def noting(product: Any, inputs: list[Tensor], *posterior: Any, batch_dim: int) -> Tensor:
        output: Tensor = estimate(product, inputs, *posterior, batch_dim=batch_dim)
        rows.append(len(output))
        return output

    (model.layer if own else model[0]).estimate = noting
    for samples, seen in ((2, [200] * 2 if own else [400]), (10, [2000])):
        rows.clear()
        bayesify.predict(model, torch.randn(200, 6), samples=samples)
        assert rows == seen


@pytest.mark.parametrize("method", METHODS)
def test_the_law_is_that_of_a_draw_of_weights(method: str) -> None:
    """y = w₂ relu(w₁ z) of a backbone's z: mean and variance against drawn weights, and nothing in common."""
    head = nn.Sequential(nn.Linear(6, 5, bias=False), nn.ReLU(), nn.Linear(5, 1, bias=False))
    model = converted(Backbone(*head), method)
    x, draws = torch.randn(2, 6), 200_000
    assert parting_of(model, x) is model.head[0]
    predictions = [bayesify.predict(model, x, samples=32, keep=True) for _ in range(300)]
    found = torch.stack([each.samples for each in predictions]).double()[..., 0]
    with torch.no_grad():
        z = x + model.body(x).tanh()
        first, last = (layer.weight + 0.2 * torch.randn(draws, *layer.weight.shape) for layer in model.head[::2])
        reference = torch.einsum("di,dni->dn", last[:, 0], torch.einsum("dji,ni->dnj", first, z).relu()).double()
    parted, mean = found.flatten(0, 1), reference.mean(0)
    for name, ours, theirs in (
        ("mean", parted, reference),
        ("variance", (parted - mean).square(), (reference - mean).square()),
    ):
        error = (ours.var(0) / len(ours) + theirs.var(0) / draws).sqrt()
        judge(name, ours.mean(0) - theirs.mean(0), error)
    centered = found - mean
    judge_mean("examples in common", (centered[..., 0] * centered[..., 1]).flatten(), 0.0)
    judge_mean("draws in common", (centered[:, ::2, 0] * centered[:, 1::2, 0]).flatten(), 0.0)


def _mixed(model: Any, x: Tensor) -> Tensor:
    """The mean over all rows of an example: blind to how many there are, and the same where they are alike."""
    y = model.layer(x).view(len(x), -1, 6)
    return model.other((y.mean(1, keepdim=True) + 0 * y).view(-1, 6))


NOWHERE: dict[str, Callable[..., Tensor]] = {
    "residual": lambda model, x: model.other(x + model.layer(x)),
    "beside": lambda model, x: model.other(torch.cat([x[:, :3], model.layer(x)[:, :3]], 1)),
    "counted": lambda model, x: model.other(model.layer(x).view(len(x), -1)),
    "mixed": _mixed,
    "pooled": lambda model, x: model.layer(x).view(len(x), 6, -1).mean(-1),
    "greatest": lambda model, x: model.layer(x).view(len(x), -1, 6).amax(1),
    "not the output": lambda model, x: x + 0 * model.layer(x[:1]).sum(),
    "given by place": lambda model, x: model.layer(x)[torch.arange(len(x))],
    "drawn": lambda model, x: model.layer(x + 1e-9 * torch.randn_like(x)),
    "dropped": lambda model, x: model.layer(nn.functional.dropout(x, 1e-9)),
    "examples second": lambda model, x: model.layer(x.unsqueeze(0)).squeeze(0),
}


@pytest.mark.parametrize("name", NOWHERE)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("examples", [1, 3])
def test_where_rows_must_not_part(name: str, method: str, examples: int) -> None:
    """Nor is a prediction wrong there: its draws are as many as those of a loop, and each has its noise."""
    model = bayesify.convert(Around(NOWHERE[name]), method).eval()
    x = torch.randn(examples, 6)
    assert parting_of(model, x) is None
    found = bayesify.predict(model, x, samples=6, keep=True)
    assert found.samples is not None
    assert found.samples.shape == (6, *model(x).shape)
    assert (found.samples.std(0) > 0).all() == (name != "not the output")


def _of_one(model: Any, x: Tensor) -> Tensor:
    y: Tensor = model.layer(x)
    return y.mean(0, keepdim=True) if len(x) == 1 else y


@pytest.mark.parametrize("method", METHODS)
def test_a_forward_that_is_another_one_for_one_example(method: str) -> None:
    """The trial of three says that rows may part, and the pass itself has too few in the end."""
    model, x = converted(Around(_of_one), method), torch.ones(1, 6)
    assert parting_of(model, x) is model.layer
    found = bayesify.predict(model, x, samples=200)
    torch.testing.assert_close(found.std, torch.full((1, 6), 0.2 * 6**0.5), rtol=0.3, atol=0)


@pytest.mark.parametrize("method", METHODS)
def test_a_forward_that_writes_to_its_input_writes_to_a_copy(method: str) -> None:
    doubled = Around(lambda model, x: model.layer(x.mul_(2)), nn.Conv1d(6, 2, 1))
    model, x = converted(doubled, method), torch.ones(1, 6, 1)
    assert parting_of(model, x) is model.layer
    model.layer.set_std("weight", 1e-6)
    found = bayesify.predict(model, x, samples=16)
    assert torch.equal(x, torch.ones(1, 6, 1))
    torch.testing.assert_close(found.mean, nn.Conv1d.forward(model.layer, 2 * x).detach(), atol=1e-3, rtol=0)


def test_a_second_input_that_is_taken_later() -> None:
    model = bayesify.convert(Around(lambda model, x, z: model.other(model.layer(x) * z)), "lrt").eval()
    assert parting_of(model, torch.randn(3, 6), torch.randn(3, 6)) is None
    early = bayesify.convert(Around(lambda model, x, z: model.other(model.layer(x * z))), "lrt").eval()
    assert parting_of(early, torch.randn(3, 6), torch.randn(3, 6)) is early.layer


@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_an_operator_that_could_draw_and_does_not(rate: float) -> None:
    """Attention's own, which is told the rate of its dropout."""

    def forward(model: Any, x: Tensor) -> Any:
        y = nn.functional.scaled_dot_product_attention(x, x, x, dropout_p=rate)
        return model.layer(y.flatten(1))

    model = converted(Around(forward), "lrt")
    assert parting_of(model, torch.randn(2, 1, 3, 2)) is (None if rate else model.layer)


def _hooked(model: Any) -> None:
    model[0].register_forward_hook(lambda module, args, output: output + 1e-9 * torch.randn_like(output))


@pytest.mark.parametrize(
    ("chain", "change", "shape"),
    [
        (nn.Sequential(nn.Dropout(1e-9), nn.Linear(4, 2)), lambda model: model[0].train(), (4,)),
        (nn.Sequential(nn.Tanh(), nn.Linear(4, 2)), _hooked, (4,)),
        (nn.Sequential(nn.Tanh(), nn.LSTM(4, 2, batch_first=True)), None, (3, 4)),
        (nn.Sequential(nn.FractionalMaxPool2d(2, 2), nn.Conv2d(3, 4, 1)), None, (3, 4, 4)),
        (nn.Sequential(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)), None, (3, 4)),
    ],
    ids=["dropout", "hook", "lstm", "random pooling", "attention"],
)
def test_modules_before_which_rows_must_not_part(
    chain: nn.Sequential, change: Callable[[Any], Any] | None, shape: tuple[int, ...]
) -> None:
    model = bayesify.convert(chain, "lrt").eval()
    if change is not None:
        change(model)
    with torch.no_grad():
        run = lambda call: [y[0] if isinstance(y := model(*call.args), tuple) else y]  # noqa: E731
        assert examples_apart(model, run, Call((torch.randn(2, *shape),), {})).layer is None


class Multiplies(nn.Module):
    """By a weight of its own, in a torch function."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 8)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x.float(), self.layer.weight)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("first", [nn.Embedding(9, 4), Multiplies()], ids=["embedding", "function"])
def test_noise_that_comes_first(first: nn.Module, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows do not part after it, though it is not seen at the posterior mean: it would be one for all draws."""
    rules = [{"targets": ["Embedding"]}] if isinstance(first, nn.Embedding) else []
    chain = nn.Sequential(first, nn.Tanh(), nn.Flatten(), nn.Linear(8, 1, bias=False))
    model: Any = bayesify.convert(chain, {"method": method, "rules": [*rules, {"targets": ["Linear"]}]}).eval()
    bayesify.set_posterior_std(model, 0.2)
    model[3].set_std("weight", 1e-6)
    rows = _rows_seen(monkeypatch)
    found = bayesify.predict(model, torch.tensor([[1, 2], [3, 4]]), samples=8, keep=True)
    assert rows[-1] in (8, 16)
    assert found.samples is not None
    assert (found.samples.std(0) > 0.001).all()


class MultipliesLater(Multiplies):
    """What its product counts as examples is what it was called with."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = super().forward(self.first(x))
        return y


@pytest.mark.parametrize("method", METHODS)
def test_a_module_that_multiplies_itself_counts_its_examples(method: str) -> None:
    model, x = converted(MultipliesLater(), method), torch.ones(1, 3)
    model.first.set_std("weight", 1e-6)
    assert parting_of(model, x) is None
    found = bayesify.predict(model, x, samples=4, keep=True)
    assert found.samples is not None
    assert (found.samples.std(0) > 0.001).all()


def test_folded_examples_and_held_draws_are_left_alone() -> None:
    model, x = network("flipout", nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)), torch.randn(3, 4)
    assert parting_of(model, x) is model[0]
    with bayesify.draw(model):
        assert parting_of(model, x) is None
        found = bayesify.predict(model, x, samples=6)
    torch.testing.assert_close(found.std, torch.zeros(3, 2), atol=1e-3, rtol=0)
    folding: Any = nn.Sequential(nn.Linear(4, 4), nn.Flatten(0, 1), nn.Linear(4, 2), nn.Unflatten(0, (-1, 5)))
    folded = bayesify.convert(folding, "flipout", example_inputs=(torch.randn(3, 5, 4),)).eval()
    assert parting_of(folded, torch.randn(3, 5, 4)) is None


@pytest.mark.parametrize("method", METHODS)
def test_a_layer_that_is_called_twice_parts_once(method: str) -> None:
    """Its second call has noise of its own for each draw: the law of w₂(w₁x), with both of mean 1 and std 0.2."""
    layer = nn.Linear(1, 1, bias=False)
    nn.init.ones_(layer.weight)
    model = network(method, layer, nn.Identity(), layer)
    assert parting_of(model, torch.ones(2, 1)) is model[0]
    found = [bayesify.predict(model, torch.ones(2, 1), samples=16, keep=True).samples for _ in range(400)]
    samples = torch.cat([each.double() for each in found if each is not None])
    assert samples.shape == (6400, 2, 1)
    judge_mean("mean", samples.flatten(), 1.0)
    judge_mean("variance", (samples - 1).square().flatten(), 1.04**2 - 1)


@pytest.mark.parametrize("method", METHODS)
def test_a_seed_says_what_is_drawn(method: str) -> None:
    model, x = network(method, nn.Tanh(), nn.Linear(5, 6), nn.Linear(6, 2)), torch.randn(3, 5)
    one, other = (bayesify.predict(model, x, seed=7) for _ in range(2))
    assert torch.equal(one.std, other.std)


def test_a_posterior_in_axes_of_the_inputs_has_products_on_both_sides_of_the_noise() -> None:
    policy = {"posterior": {"basis": "inputs"}}
    model = bayesify.convert(nn.Sequential(nn.Linear(5, 6)), policy, example_inputs=(torch.randn(30, 5),)).eval()
    assert parting_of(model, torch.randn(3, 5)) is None
    assert bayesify.predict(model, torch.randn(3, 5), samples=6).std.min() > 0


def test_a_trial_imports_no_compiler() -> None:
    code = (
        "import sys, torch, bayesify; from torch import nn; model = bayesify.convert(nn.Linear(3, 2), 'lrt');"
        "before = 'torch._dynamo' in sys.modules; bayesify.predict(model, torch.ones(1, 3));"
        "print(before, 'torch._dynamo' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.stdout.split() == ["False", "False"], ran.stderr
