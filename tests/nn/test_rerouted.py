"""Modules that multiply by weights in their own forward: every form of product has its law."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

import bayesify
from bayesify.errors import NothingToConvertError
from bayesify.nn.settings import Method

from ..support import METHODS, PARAMETERIZATIONS, as_if_compiling, assert_moments, draws, fixed_noise, judge_mean


class Form(nn.Module):
    """One matrix (or more dimensions) and what is done with it."""

    def __init__(self, shape: Sequence[int], product: Callable[..., Tensor], bias: int = 0) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(shape))
        self.shift = nn.Parameter(torch.randn(bias)) if bias else None
        self.product = product

    def forward(self, x: Tensor) -> Tensor:
        return self.product(self, x)


def conv1d(m: Form, x: Tensor) -> Tensor:
    """Of torchvision's kind, arguments by keyword."""
    return F.conv1d(x, weight=m.matrix, bias=m.shift, stride=2, padding=1, groups=2)


# name -> (shape of the matrix, the product, shape of one example, size of the bias)
FORMS: dict[str, tuple[tuple[int, ...], Callable[[Form, Tensor], Tensor], tuple[int, ...], int]] = {
    "linear": ((3, 4), lambda m, x: F.linear(x, m.matrix), (4,), 0),
    "linear with bias": ((3, 4), lambda m, x: F.linear(x, m.matrix, m.shift), (2, 4), 3),
    "matmul operator": ((4, 3), lambda m, x: x @ m.matrix, (2, 4), 0),
    "matmul": ((4, 3), lambda m, x: torch.matmul(x, m.matrix), (4,), 0),
    "matmul of the transposed": ((3, 4), lambda m, x: x @ m.matrix.T, (4,), 0),
    "mm": ((4, 3), lambda m, x: x.mm(m.matrix), (4,), 0),
    "addmm": ((4, 3), lambda m, x: torch.addmm(m.shift, x, m.matrix), (4,), 3),
    "from the left": ((3, 4), lambda m, x: m.matrix @ x, (4, 2), 0),
    "bmm": ((2, 4, 3), lambda m, x: torch.bmm(x.transpose(0, 1), m.matrix).transpose(0, 1), (2, 4), 0),
    "matmul over heads": ((2, 4, 3), lambda m, x: x @ m.matrix, (2, 2, 4), 0),
    "einsum": ((4, 3), lambda m, x: torch.einsum("bti,io->bto", x, m.matrix), (2, 4), 0),
    "einsum over heads": ((2, 4, 3), lambda m, x: torch.einsum("hio,bthi->bhto", m.matrix, x), (2, 2, 4), 0),
    "einsum that sums": ((4, 3), lambda m, x: torch.einsum("bti,io->bo", x, m.matrix), (2, 4), 0),
    "conv1d": ((4, 1, 3), conv1d, (2, 5), 4),
    "conv2d": ((2, 2, 2, 2), lambda m, x: F.conv2d(x, m.matrix, padding="same"), (2, 3, 2), 0),
    "conv3d": ((2, 1, 1, 2, 1), lambda m, x: F.conv3d(x, m.matrix), (1, 1, 3, 2), 0),
    "conv_transpose1d": ((2, 2, 2), lambda m, x: F.conv_transpose1d(x, m.matrix, stride=2), (2, 3), 0),
    "conv_transpose2d": ((2, 1, 2, 2), lambda m, x: F.conv_transpose2d(x, m.matrix, m.shift), (2, 2, 2), 1),
    "bilinear": ((3, 2, 2), lambda m, x: F.bilinear(x[:, 0], x[:, 1], m.matrix), (2, 2), 0),
    "chunks": ((6, 4), lambda m, x: sum(F.linear(x, each) for each in m.matrix.chunk(3)), (4,), 0),
    "rows": ((6, 4), lambda m, x: F.linear(x, m.matrix[1:4]), (4,), 0),
    "reshaped": ((2, 2, 4), lambda m, x: F.linear(x, m.matrix.view(4, -1).to(x.dtype)), (4,), 0),
    "folded rows": ((3, 4), lambda m, x: F.linear(x.reshape(-1, 4), m.matrix).view(*x.shape[:-1], 3), (2, 4), 0),
    "folded windows": ((3, 4), lambda m, x: F.linear(x.flatten(0, 1), m.matrix).view(*x.shape[:-1], 3), (2, 2, 4), 0),
}


def converted(plain: nn.Module, method: Method, **policy: Any) -> Any:
    """Converted, with a large std that is another for each element."""
    layer = bayesify.convert(plain, {"method": method, **policy})
    bayesify.set_posterior_std(layer, 0.5)
    for _, each in bayesify.variational_layers(layer):
        for name in each.means():
            scale = each.scale_of(name)
            assert scale is not None
            scale.data += 0.5 * torch.randn_like(scale)
    return layer


def form(name: str, examples: int = 2) -> tuple[Form, Tensor]:
    """The plain module and a batch for it."""
    shape, product, example, bias = FORMS[name]
    torch.manual_seed(1)
    return Form(shape, product, bias), torch.randn(examples, *example)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", FORMS)
def test_every_form_of_product_has_the_law(name: str, method: Method) -> None:
    plain, x = form(name)
    plain, x = plain.double(), x.double()
    layer = converted(plain, method)
    with bayesify.posterior_mean(layer):
        assert torch.equal(layer(x), plain(x))
    assert_moments(plain, layer, [x], count=2000)


def test_the_law_of_two_dimensional_rows_that_are_examples() -> None:
    """The moments judge that no pair of examples is correlated; here, that four rows of four are four examples."""
    plain, _ = form("folded rows")
    x = torch.ones(4, 1, 4)
    noise = draws(converted(plain, "flipout"), 4000, x)[:, :, 0, 0]
    judge_mean("uncorrelated", (noise[:, 0] - noise[:, 0].mean()) * (noise[:, 1] - noise[:, 1].mean()), 0.0)


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["addmm", "einsum over heads", "chunks", "conv1d", "folded rows"])
class TestLayer:
    @pytest.fixture
    def layer(self, name: str, method: Method, parameterization: str) -> Any:
        return converted(form(name)[0], method, posterior={"parameterization": parameterization})

    def test_gradients_of_fixed_noise(self, layer: Any, name: str) -> None:
        layer.double()
        x = form(name)[1].double().requires_grad_()
        given = {key: each.detach().requires_grad_() for key, each in layer.named_parameters()}

        def output(x: Tensor, *tensors: Tensor) -> Tensor:
            torch.manual_seed(2)
            return functional_call(layer, dict(zip(given, tensors, strict=True)), (x,))

        assert torch.autograd.gradcheck(output, (x, *given.values()), fast_mode=True)

    def test_compiles_to_one_graph(self, layer: Any, name: str) -> None:
        x, outcomes = form(name)[1], []
        torch._dynamo.reset()
        with fixed_noise():
            for function in (layer, torch.compile(layer, fullgraph=True, backend="aot_eager")):
                output = function(x)
                loss = output.square().sum() + layer.kl()
                outcomes.append((output, *torch.autograd.grad(loss, list(layer.parameters()))))
        torch.testing.assert_close(outcomes[1], outcomes[0])

    def test_autocast_and_checkpointing(self, layer: Any, name: str) -> None:
        x = form(name)[1].requires_grad_()
        gradients = []
        for recompute in (False, True):
            torch.manual_seed(3)
            with torch.autocast("cpu", torch.bfloat16):
                output = checkpoint(layer, x, use_reentrant=False) if recompute else layer(x)
            gradients.append(torch.autograd.grad(output.float().square().sum(), list(layer.parameters())))
        assert output.dtype == torch.bfloat16
        torch.testing.assert_close(gradients[0], gradients[1])
        assert all(each.isfinite().all() and each.abs().max() > 0 for each in gradients[0])


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
    for each in (model, twin):
        torch.manual_seed(6)
        outputs.append(each(x))
    assert torch.equal(*outputs)
    assert torch.equal(twin.kl(), model.kl())
    assert [type(each) for each in twin.modules()] == [type(each) for each in model.modules()]


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
    model = bayesify.convert(plain, method)
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
    assert [type(each) for each in back.modules()] == [type(each) for each in plain.modules()]
    assert [vars(each).keys() for each in back.modules()] == [vars(each).keys() for each in plain.modules()]
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
        torch.manual_seed(1)
        with as_if_compiling() if compiling else nullcontext():
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
        return x @ self.matrix.exp() if self.grows else x @ self.matrix


def test_what_the_trace_did_not_see_is_an_error_and_never_a_bypass() -> None:
    model = bayesify.convert(Adds())
    model(torch.ones(2, 2))
    model.grows = True
    words = r"FlipoutAdds is used in torch\.Tensor\.exp, which its noise would not pass"
    with pytest.raises(RuntimeError, match=words):
        model(torch.ones(2, 2))
    blocked = Adds()
    blocked.grows = True
    with pytest.raises(NothingToConvertError, match=rf"matrix: it is used in `exp` at {__file__}:\d+"):
        bayesify.convert(blocked)
