"""Modules whose forward multiplies by their own weights and by their children's: all of their life."""

from __future__ import annotations

import copy
import io
import pickle
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bayesify
from bayesify.errors import NothingToConvertError
from bayesify.nn.settings import Method
from tests.support import METHODS, as_if_compiling, draws, fixed_noise, judge_mean

from .test_rerouted import converted


class Projection(nn.Module):
    """As transformers' Conv1D: pickles, since its product is code."""

    def __init__(self, n: int, m: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(n, m)), nn.Parameter(torch.zeros(m))
        self.table = nn.Parameter(torch.zeros(n, n))

    def forward(self, x: Tensor) -> Tensor:
        rows = torch.addmm(self.bias, x.view(-1, x.shape[-1]), self.weight)
        return rows.view(*x.shape[:-1], -1) + self.table.sum()


class Inside(nn.Module):
    """Its attention reads the projections of its children, one of which it also calls."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(4, 6), nn.Linear(2, 4)
        self.own = Projection(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = F.linear(x, self.qkv.weight, self.qkv.bias).chunk(3, -1)
        x = F.linear(torch.softmax(q @ k.mT, -1) @ v, self.proj.weight)
        return self.own(x + self.proj(v))


def copied(layer: Any, way: str) -> Any:
    if way == "deepcopy":
        return copy.deepcopy(layer)
    if way == "pickle":
        return pickle.loads(pickle.dumps(layer))
    if way == "state_dict":
        twin = bayesify.convert(Inside(), layer.method_was)
        twin.load_state_dict(layer.state_dict())
        return twin
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    with torch.serialization.safe_globals([Inside, Projection]):
        return torch.load(file, weights_only=True)


@pytest.mark.parametrize("way", ["deepcopy", "pickle", "weights_only", "state_dict"])
@pytest.mark.parametrize("method", METHODS)
def test_copies(method: Method, way: str) -> None:
    model = converted(Inside(), method)
    model.method_was = method
    twin, x, outputs = copied(model, way), torch.randn(2, 3, 4), []
    for layer in (model, twin):
        torch.manual_seed(6)
        outputs.append(layer(x))
    assert torch.equal(*outputs)
    assert torch.equal(twin.kl(), model.kl())
    assert [type(module) for module in twin.modules()] == [type(module) for module in model.modules()]


@pytest.mark.parametrize("method", METHODS)
def test_plan_convert_and_revert(method: Method) -> None:
    plain = Inside()
    rows = {row.name: row for row in bayesify.plan(plain, method).rows}
    prefix = {"flipout": "Flipout", "lrt": "LRT"}[method]
    assert (rows["own"].verb, rows["own"].becomes) == ("converts", f"{prefix}Projection")
    assert any("table keeps no posterior: it is used in `sum` at" in note for note in rows["own"].notes)
    assert (rows[""].verb, rows[""].reads) == ("adjusted", ("qkv", "proj"))
    assert rows["qkv"].becomes == f"{prefix}Linear"
    assert not any("never called" in note for note in rows["qkv"].notes)
    model = bayesify.convert(plain, {"method": method, "prior": {"mean": "pretrained"}})
    assert type(model).__name__ == "Inside"
    assert isinstance(model.own, Projection)
    assert set(model.state_dict()) - set(plain.state_dict()) == {
        f"{name}.weight_{kind}" for name in ("qkv", "proj", "own") for kind in ("rho", "prior_mean")
    }
    x = torch.randn(2, 3, 4)
    with bayesify.posterior_mean(model):
        assert torch.equal(model(x), plain(x))
    model.kl.reset()
    model.eval()(x).sum().backward()
    assert all(layer.scale_of("weight").grad.abs().max() > 0 for _, layer in bayesify.variational_layers(model))
    assert torch.equal(model.kl(reached=True), model.kl())
    back = bayesify.revert(model)
    assert [type(module) for module in back.modules()] == [type(module) for module in plain.modules()]
    assert [vars(module).keys() for module in back.modules()] == [vars(module).keys() for module in plain.modules()]
    optimizer = torch.optim.SGD(bayesify.param_groups(model))
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))


def test_what_a_policy_selects() -> None:
    rules = [{"targets": [f"type:{__name__}.Projection"], "method": "lrt"}, {"targets": ["q*"]}]
    model = bayesify.convert(Inside(), {"rules": rules})
    found = {name: layer.method for name, layer in bayesify.variational_layers(model)}
    assert found == {"qkv": "flipout", "own": "lrt"}
    x = torch.randn(2, 3, 4)
    with bayesify.posterior_mean(model.qkv), bayesify.posterior_mean(model.own):
        assert torch.equal(model(x), model(x))
    with bayesify.posterior_mean(model.own):
        assert not torch.equal(model(x), model(x))


class Experts(nn.Module):
    """Each row goes to an expert."""

    def __init__(self) -> None:
        super().__init__()
        self.bank = nn.Parameter(torch.randn(3, 4, 4))

    def forward(self, x: Tensor, ends: Tensor) -> Tensor:
        return F.grouped_mm(x, self.bank.transpose(-2, -1), offs=ends)


@pytest.mark.parametrize("method", METHODS)
def test_experts(method: Method) -> None:
    plain, x, ends = Experts(), torch.randn(5, 4), torch.tensor([2, 2, 5], dtype=torch.int32)
    model = converted(plain, method)
    assert model._settings.weights == (("bank", 4),)
    with bayesify.posterior_mean(model):
        assert torch.equal(model(x, ends), plain(x, ends))
    with torch.no_grad():
        spread = torch.stack([model(x, ends) for _ in range(4000)]) - plain(x, ends)
        std = model.std_of("bank")[[0, 0, 2, 2, 2]]
    judge_mean("variance", spread.square() / torch.einsum("ri,roi->ro", x.square(), std.square()), 1.0)
    judge_mean("rows", spread[:, 0] * spread[:, 1], 0.0)
    x.requires_grad_()
    leaves, gradients = (x, *model.parameters()), []
    for compiling in (False, True):
        with fixed_noise(), as_if_compiling() if compiling else nullcontext():
            gradients.append(torch.autograd.grad(model(x, ends).square().sum(), leaves))
    torch.testing.assert_close(*gradients)
    notes = [note for row in bayesify.plan(plain, method).rows for note in row.notes]
    assert any("signs of its own" in note for note in notes) is (method == "flipout")


class CalledAndRead(nn.Module):
    """One layer, called and read: two products, each with noise once."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.layer(x[:, 0]), F.linear(x[:, 1], self.layer.weight)], dim=-1)


@pytest.mark.parametrize("method", METHODS)
def test_a_layer_that_is_called_and_read_has_no_noise_twice(method: Method) -> None:
    plain = CalledAndRead().double()
    model = converted(plain, method, posterior={"parameterization": "multiplicative"})
    x = torch.randn(2, 2, 4).double()
    spread = draws(model, 4000, x) - plain(x).detach()
    std = model.layer.weight_std.detach()
    variance = torch.cat([x[:, 0].square() @ std.T.square(), x[:, 1].square() @ std.T.square()], dim=-1)
    judge_mean("variance", spread.square() / variance, 1.0)


class Adds(nn.Module):
    """No product at all."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.zeros(2, 2))
        self.grows = False

    def forward(self, x: Tensor) -> Tensor:
        return x + self.matrix.exp() if self.grows else x @ self.matrix


def test_what_the_trace_did_not_see_is_an_error_and_never_a_bypass() -> None:
    model = bayesify.convert(Adds())
    model(torch.ones(2, 2))
    model.grows = True
    words = r"FlipoutAdds is used in torch\.Tensor\.exp, which its noise would not pass"
    with pytest.raises(RuntimeError, match=words):
        model(torch.ones(2, 2))
    blocked = Adds()
    blocked.grows = True
    with pytest.raises(NothingToConvertError, match=rf"matrix: it is used in `exp` at {Path(__file__).name}:\d+"):
        bayesify.convert(blocked)


class Branches(nn.Module):
    """It branches on data, where Dynamo breaks its graph."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Parameter(torch.randn(4, 3)), nn.Parameter(torch.randn(4, 3))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.up if x.sum() > 0 else F.linear(x, self.down.T)


@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
@pytest.mark.parametrize("method", METHODS)
def test_noise_is_drawn_once_after_a_graph_break(method: Method, backend: str) -> None:
    """The compiled rest of the forward holds the noise, and still runs where products are rerouted."""
    plain, x = Branches(), torch.ones(2, 4)
    layer: Any = bayesify.convert(plain, method).requires_grad_(False)
    bayesify.set_posterior_std(layer, 0.5)
    torch._dynamo.reset()
    run = torch.compile(layer, backend=backend)
    for given in (x, -x):
        spread = torch.stack([run(given) for _ in range(2000)]).double() - plain(given).detach()
        judge_mean("variance", spread.square() / (0.25 * 4), 1.0)
        judge_mean("other example", spread[:, 0] * spread[:, 1], 0.0)


class Transposes(nn.Module):
    """Of a weight as an attribute, which Dynamo hides from the mode that reroutes, before torch 2.14."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.matrix.weight.T)


def test_a_weight_transposed_as_an_attribute_is_noisy_when_compiled() -> None:
    model: Any = bayesify.convert(Transposes())
    torch._dynamo.reset()
    run, x = torch.compile(model, backend="eager"), torch.randn(2, 4)
    assert not torch.equal(run(x), run(x))
    model = bayesify.revert(model)
    assert "_uncompiled" not in vars(model)
