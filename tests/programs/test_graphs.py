"""Graphs of torch.fx, converted: layers by their class, and what the graph itself multiplies by."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

import bayesify
from bayesify.errors import NothingToConvertError


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
    rhos = [each for name, each in model.named_parameters() if name.endswith("_rho")]
    assert len(rhos) == len(scales)
    assert all(each.grad.abs().sum() > 0 for each in rhos)
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
