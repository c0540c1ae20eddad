"""Graphs of torch.fx, converted: layers by their class, and what the graph itself multiplies by."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.fx.experimental.proxy_tensor import make_fx

import bayesify
from bayesify.errors import NothingToConvertError
from bayesify.programs import layer_insertion
from bayesify.programs.graph_module import Graph
from bayesify.surgery import rewrite
from bayesify.surgery.convert import carry_out


class Functional(nn.Module):
    """Layers, and Parameters used in torch's functions: of the root and of a module below it."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.a, self.b = nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(2, 3))
        self.inner = nn.Module()
        self.inner.w, self.inner.kernel = nn.Parameter(torch.randn(2, 2)), nn.Parameter(torch.randn(1, 1, 1))
        self.shift = nn.Parameter(torch.randn(1, 4))

    def forward(self, x):
        h = F.linear(F.relu(self.layer(x) + self.shift), self.a) @ self.b.T
        h = torch.einsum("bi,io->bo", h, self.inner.w)
        return F.conv1d(h.unsqueeze(1), self.inner.kernel).squeeze(1)


@pytest.mark.parametrize("method", ["flipout", "lrt"])
@pytest.mark.parametrize("inplace", [False, True])
def test_a_graph_of_torch_fx_converts(method, inplace):
    graph, x = fx.symbolic_trace(Functional()), torch.randn(5, 4)
    expected, names = graph(x), list(graph.state_dict())
    before = graph.code
    plan = bayesify.plan(graph, method)
    assert graph.code == before
    model = bayesify.convert(graph, method, inplace=inplace)
    assert (model is graph) == inplace
    assert {row.name for row in plan.converting()} == {name for name, _ in bayesify.variational_layers(model)}
    scales = [f"{name}_rho" for name in ("a", "b", "layer.weight", "inner.w", "inner.kernel")]
    assert set(model.state_dict()) >= {*names, *scales}
    with bayesify.posterior_mean(model):
        assert torch.equal(model(x), expected)
    assert not torch.equal(model(x), model(x))
    model(x).square().sum().backward()
    rhos = [parameter for name, parameter in model.named_parameters() if name.endswith("_rho")]
    assert len(rhos) == len(scales)
    assert all(rho.grad.abs().sum() > 0 for rho in rhos)
    bayesify.load_weights(model, fx.symbolic_trace(Functional()).state_dict())
    bayesify.load_weights(copy.deepcopy(model), {name: model.state_dict()[name] for name in names})


def test_a_graph_without_products_has_nothing_to_convert():
    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.randn(2, 2))

        def forward(self, x):
            return x * self.w

    with pytest.raises(NothingToConvertError):
        bayesify.convert(fx.symbolic_trace(Scale()))


def traced_layers():
    return fx.symbolic_trace(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)))


def operators():
    return make_fx(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)))(torch.randn(5, 4))


GRAPHS = {"products": lambda: fx.symbolic_trace(Functional()), "layers": traced_layers, "operators": operators}


@pytest.mark.parametrize("make", GRAPHS.values(), ids=GRAPHS)
def test_a_converted_graph_keeps_its_kl_in_copies_and_pickles(make):
    model, x = bayesify.convert(make()), torch.randn(5, 4)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), copy.deepcopy(copy.deepcopy(model))):
        assert other.kl.root is other
        assert torch.equal(other.kl(), model.kl())
        torch.manual_seed(3)
        expected = model(x)
        torch.manual_seed(3)
        assert torch.equal(other(x), expected)
        other.load_state_dict(model.state_dict())
        with torch.no_grad():
            next(other.parameters()).add_(1)
        assert not torch.equal(next(other.parameters()), next(model.parameters()))
        assert not hasattr(bayesify.revert(other), "kl")


@pytest.mark.parametrize("inplace", [False, True])
def test_graphs_inside_another_model_convert(inplace):
    first, second = fx.symbolic_trace(Functional()), fx.symbolic_trace(Functional())
    model, x = nn.Sequential(first, nn.Linear(2, 4), second), torch.randn(5, 4)
    expected, code = model(x), model[0].code
    plan = bayesify.plan(model)
    assert model[0].code == code
    converted = bayesify.convert(model, inplace=inplace)
    assert {row.name for row in plan.converting()} == {name for name, _ in bayesify.variational_layers(converted)}
    with bayesify.posterior_mean(converted):
        assert torch.equal(converted(x), expected)
    converted(x).square().sum().backward()
    scales = [parameter.grad for name, parameter in converted.named_parameters() if name.endswith("_rho")]
    assert len(scales) == 11
    assert all(scale.abs().sum() > 0 for scale in scales)
    for other in (copy.deepcopy(converted), pickle.loads(pickle.dumps(converted))):
        assert torch.equal(other.kl(), converted.kl())
        other.load_state_dict(converted.state_dict())
    assert torch.equal(bayesify.revert(converted)(x), expected)


def test_a_graph_gets_its_layers_once(monkeypatch):
    rerouted = []

    def counted(*args):
        rerouted.append(args)
        return reroute(*args)

    reroute = layer_insertion._reroute
    monkeypatch.setattr(layer_insertion, "_reroute", counted)
    bayesify.convert(fx.symbolic_trace(Functional()))
    assert len(rerouted) == 4  # two products of the root, two of the module below it


class Around(nn.Module):
    """A graph inside a module, under two names."""

    def __init__(self, graph):
        super().__init__()
        self.first, self.alias, self.last = graph, graph, nn.Linear(4, 4)

    def forward(self, x):
        return self.first(self.last(x))


@pytest.mark.parametrize("kind", ["products", "operators"])
def test_a_plan_is_carried_out_more_than_once(kind):
    model, x = Around(GRAPHS[kind]()), torch.randn(5, 4)
    expected, made = model(x), bayesify.plan(model)
    one, other = carry_out(made, model), carry_out(made, model)
    for converted in (one, other):
        assert {row.name for row in made.converting()} == {name for name, _ in bayesify.variational_layers(converted)}
        assert converted.first is converted.alias
        with bayesify.posterior_mean(converted):
            assert torch.equal(converted(x), expected)
    tensors = {id(parameter) for parameter in (*one.parameters(), *model.parameters())}
    assert not any(id(parameter) in tensors for parameter in other.parameters())
    modules = {id(module) for module in (*one.modules(), *model.modules())}
    assert not any(id(module) in modules for module in other.modules())
    carry_out(made, model, inplace=True)
    assert not torch.equal(model(x), model(x))


def shape_of(model):
    """What a graph's module is, but for the values of its Parameters."""
    return [
        (name, type(module).__name__, set(vars(module)), list(module._parameters), list(module._modules))
        for name, module in model.named_modules()
    ]


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("kind", ["products", "operators"])
def test_revert_gives_the_plain_graph_back(kind, inplace):
    plain, x = GRAPHS[kind](), torch.randn(5, 4)
    expected, code, form = plain(x), plain.code, shape_of(copy.deepcopy(plain))  # fx gives a copy another class name
    model = copy.deepcopy(bayesify.convert(copy.deepcopy(plain)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.0)
    back = bayesify.revert(model, inplace=inplace)
    assert (back is model) == inplace
    assert back.code == code
    assert shape_of(back) == form
    assert list(back.state_dict()) == list(plain.state_dict())
    assert not isinstance(back, Graph)
    assert torch.equal(back(x), expected)
    back.recompile()
    assert torch.equal(plain(x), expected)
    again = bayesify.convert(back)
    assert not torch.equal(again(x), again(x))
    assert torch.equal(bayesify.revert(again)(x), expected)


@pytest.mark.parametrize("kind", ["products", "operators"])
def test_a_conversion_that_fails_leaves_the_graph_as_it_was(kind, monkeypatch):
    plain, x = GRAPHS[kind](), torch.randn(5, 4)
    expected, code, form, cls = plain(x), plain.code, shape_of(plain), type(plain)

    def fails(model):
        raise MemoryError

    monkeypatch.setattr(rewrite, "keep_ties", fails)
    for _ in range(2):  # the second time it is as the first one left it
        with pytest.raises(MemoryError):
            bayesify.convert(plain, inplace=True)
        assert (plain.code, shape_of(plain), type(plain)) == (code, form, cls)
        assert torch.equal(plain(x), expected)
