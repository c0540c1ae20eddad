"""torch_geometric's layers: what multiplies by itself converts, and the plan says what does not and what to do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bayesify
from bayesify.nn import registry
from tests.support import METHODS

geometric = pytest.importorskip("torch_geometric.nn")

_EDGES = torch.tensor([[0, 1, 2, 3, 4, 0], [1, 2, 3, 4, 0, 2]])
_TYPES = torch.tensor([0, 1, 0, 1, 0, 1])
LAYERS: dict[str, Any] = {
    "GCN": lambda: geometric.GCNConv(4, 4),
    "GATv2": lambda: geometric.GATv2Conv(4, 4),
    "GIN": lambda: geometric.GINConv(nn.Linear(4, 4)),
    "SAGE": lambda: geometric.SAGEConv(4, 4),
    "NNConv": lambda: geometric.NNConv(4, 4, nn.Linear(1, 16)),
    "Transformer": lambda: geometric.TransformerConv(4, 4),
}
UNTRACED: dict[str, tuple[Any, tuple[str, ...]]] = {
    "RGCN": (lambda: geometric.RGCNConv(4, 4, 2), ("weight", "root")),
    "ARMA": (lambda: geometric.ARMAConv(4, 4, num_layers=2), ("init_weight", "weight", "root_weight")),
    "GatedGraph": (lambda: geometric.GatedGraphConv(4, 2), ("weight",)),
}


class _Graphs(nn.Module):
    def __init__(self, conv: nn.Module, edges: Any = ()) -> None:
        super().__init__()
        self.conv, self.head, self.edges = conv, nn.Linear(4, 2), edges

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.conv(x, _EDGES, *self.edges)))


def _converts(net: _Graphs, method: Any, policy: dict[str, Any]) -> Any:
    x = torch.randn(5, 4)
    expected = net.eval()(x)
    model: Any = bayesify.convert(net, {"method": method, **policy})
    with bayesify.posterior_mean(model):
        assert torch.equal(model(x), expected)
    assert not torch.equal(model(x), model(x))
    model(x).square().sum().backward()
    scales = {name: value.grad for name, value in model.named_parameters() if name.endswith("_rho")}
    assert all(grad is not None and grad.abs().sum() > 0 for grad in scales.values()), scales.keys()
    return model


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", LAYERS)
def test_layers_convert(name: str, method: Any) -> None:
    edges = (torch.rand(6, 1),) if name == "NNConv" else ()
    model = _converts(_Graphs(LAYERS[name](), edges), method, {})
    assert len(list(bayesify.variational_layers(model))) > 1
    assert type(bayesify.revert(model).conv) is type(LAYERS[name]())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", UNTRACED)
def test_the_plan_says_what_to_register(name: str, method: Any, monkeypatch: Any) -> None:
    make, weights = UNTRACED[name]
    edges = (_TYPES,) if name == "RGCN" else ()
    (row,) = (row for row in bayesify.plan(_Graphs(make(), edges)).rows if row.name == "conv")
    assert row.verb == "blocked"
    assert "its forward does not trace" in str(row.reason)
    call = f"bayesify.register({type(make()).__name__}, weights="
    assert call in str(row.reason)
    plain = type(make())
    advised = str(row.reason).partition(call)[2].partition("]")[0]
    assert all(repr(weight) in advised for weight in weights)

    monkeypatch.setitem(registry._MULTIPLYING, plain, weights)  # as register does, and taken back after the test
    names = {name for name, _ in _converts(_Graphs(make(), edges), method, {}).conv.named_parameters(recurse=False)}
    assert {f"{weight}_rho" for weight in weights} <= names
