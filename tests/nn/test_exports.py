"""Converted models through torch.export, torch.fx and TorchScript: with their noise, or refused, and why."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bayesify
from bayesify.errors import UsageError
from tests.support import METHODS


class _Text(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.attention, self.head = nn.Embedding(9, 4), nn.MultiheadAttention(4, 2, batch_first=True), None
        self.out = nn.Linear(4, 2)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids)
        return self.out(self.attention(x, x, x, need_weights=False)[0].mean(1))


class _Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.out = nn.GRU(4, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.rnn(x)[0][:, -1])


def _conv() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))


def _images(size: int) -> Tensor:
    return torch.randn(size, 3, 8, 8)


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))


MODELS: dict[str, tuple[Any, Any]] = {
    "mlp": (_mlp, lambda size: torch.randn(size, 4)),
    "conv": (_conv, _images),
    "text": (_Text, lambda size: torch.randint(0, 9, (size, 5))),
    "recurrent": (_Recurrent, lambda size: torch.randn(size, 5, 4)),
}


def _judge(run: Any, model: nn.Module, inputs: Any) -> None:
    """Other batch sizes, fresh noise at each run and for each example, of the model's own size."""
    for size in (2, 7, 17, 300):
        assert run(inputs(size)).shape == (size, 2)
    x = inputs(1)
    x = x.expand(400, *x.shape[1:]).contiguous()
    assert not torch.equal(run(x), run(x))
    with torch.no_grad():
        found, own = run(x), model(x)
    assert len(found.unique(dim=0)) > 10  # LRT shares no draw; Flipout has 2^k signs
    draws = [torch.cat([f(x[:8]) for _ in range(40)]).std(0) for f in (run, model)]
    torch.testing.assert_close(*draws, rtol=0.5, atol=0.02)
    assert found.shape == own.shape


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("examples", [3, 100])
def test_export_with_a_dynamic_batch(name: str, method: Any, examples: int) -> None:
    make, inputs = MODELS[name]
    plain = make().eval()
    shapes = ({0: torch.export.Dim("batch")},)
    try:
        torch.export.export(plain, (inputs(examples),), dynamic_shapes=shapes)
    except Exception as error:
        pytest.skip(f"torch does not export the plain model so: {type(error).__name__}")
    model = bayesify.convert(plain, {"method": method, "posterior": {"init_std": 0.2}})
    with torch.no_grad():
        program = torch.export.export(model, (inputs(examples),), dynamic_shapes=shapes)
        _judge(program.module(), model, inputs)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", MODELS)
def test_torchscript_traces_with_noise(name: str, method: Any) -> None:
    make, inputs = MODELS[name]
    model = bayesify.convert(make().eval(), {"method": method, "posterior": {"init_std": 0.2}})
    traced = torch.jit.trace(model, inputs(3), check_trace=False)
    file = io.BytesIO()
    torch.jit.save(traced, file)
    file.seek(0)
    with torch.no_grad():
        _judge(torch.jit.load(file), model, inputs)


def test_torchscript_compiles_none_and_says_so() -> None:
    model = bayesify.convert(_mlp())
    with pytest.raises(UsageError, match=r"torch.jit.script cannot compile a FlipoutLinear: use torch.jit.trace"):
        torch.jit.script(model)
    torch.jit.script(bayesify.revert(model))


@pytest.mark.parametrize("method", METHODS)
def test_converted_layers_are_leaves_to_torch_fx(method: Any) -> None:
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
    model: Any = bayesify.convert(plain, method)
    calls: list[int] = []
    model[0].register_forward_hook(lambda *_: calls.append(1))
    graph = torch.fx.symbolic_trace(model)
    kinds = [node.op for node in graph.graph.nodes]
    assert kinds == [node.op for node in torch.fx.symbolic_trace(plain).graph.nodes]
    assert calls == []  # a leaf's hooks run with the layer, and not while it is traced
    x = _images(2)
    torch.manual_seed(1)
    expected = model(x)
    torch.manual_seed(1)
    assert torch.equal(graph(x), expected)
    assert calls == [1, 1]
    with bayesify.posterior_mean(graph):
        assert torch.equal(graph(x), plain(x))
    assert bayesify.kl(graph) == model.kl()
    copy.deepcopy(graph)(x)


@pytest.mark.parametrize("method", METHODS)
def test_feature_extractors_of_a_converted_network(vision: Any, method: Any) -> None:
    from torchvision.models.feature_extraction import create_feature_extractor

    model = bayesify.convert(vision.models.resnet18(num_classes=3).eval(), method)
    features = create_feature_extractor(model, ["layer1.0.conv1", "layer4"])
    x = torch.randn(2, 3, 32, 32)
    one, two = features(x), features(x)
    assert list(one) == ["layer1.0.conv1", "layer4"]
    assert not torch.equal(one["layer4"], two["layer4"])


class _Own(nn.Module):
    """Multiplies by its weight itself."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight)


def test_modules_that_multiply_themselves_are_leaves_too() -> None:
    graph = torch.fx.symbolic_trace(bayesify.convert(nn.Sequential(_Own(), nn.ReLU())))
    x = torch.ones(2, 4)
    assert not torch.equal(graph(x), graph(x))


class _Mixed(_Own):
    """Multiplies by its weight and by a child's, and calls another child."""

    def __init__(self) -> None:
        super().__init__()
        self.called, self.read = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(super().forward(self.called(x)), self.read.weight)


class _Reading(nn.Module):
    """Multiplies by a child's weight."""

    def __init__(self) -> None:
        super().__init__()
        self.read = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.read.weight)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("make", [_Own, _Mixed, _Reading, lambda: nn.Linear(4, 4), lambda: nn.GRU(4, 4)])
def test_a_leaf_is_no_root_to_torch_fx(make: Any, method: Any) -> None:
    model = bayesify.convert(make(), method)
    with pytest.raises(UsageError, match=r"is a leaf, and so never the root: trace nn.Sequential\(model\)"):
        torch.fx.symbolic_trace(model)
    graph = torch.fx.symbolic_trace(nn.Sequential(model))
    assert [node.op for node in graph.graph.nodes] == ["placeholder", "call_module", "output"]


@pytest.mark.parametrize("method", METHODS)
def test_noise_survives_run_decompositions(method: Any) -> None:
    make, inputs = MODELS["conv"]
    model = bayesify.convert(make().eval(), {"method": method, "posterior": {"init_std": 0.2}})
    with torch.no_grad():
        for strict in (False, True):
            shapes = ({0: torch.export.Dim("batch")},)
            program = torch.export.export(model, (inputs(3),), dynamic_shapes=shapes, strict=strict)
            _judge(program.run_decompositions().module(), model, inputs)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["mlp", "conv", "text"])
def test_one_graph_compiled_for_every_size_of_the_batch(name: str, method: Any) -> None:
    make, inputs = MODELS[name]
    model = bayesify.convert(make().eval(), {"method": method, "posterior": {"init_std": 0.2}})
    graphs: list[Any] = []

    def backend(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=backend)
    with torch.no_grad():
        _judge(compiled, model, inputs)
    assert len(graphs) <= 3  # a batch whose signs fit in one word apart, and not one for each of the five sizes
