"""Layers that are one operator in a graph: embeddings, recurrent layers and their cells. They become layers again."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.nn.parameter import Parameter

from .graph_products import GraphProducts, attribute, place_of
from .torch_layers import put

Path = tuple[int, ...]


@dataclass(frozen=True)
class Kernel:
    """One call of such an operator.

    Attributes:
        layer: makes the layer, on meta.
        weights: the nodes of its Parameters, in the layer's order.
        args: what the layer is called with.
        outputs: where the operator's outputs are in the layer's; None where both have one output.
    """

    layer: Callable[[], nn.Module]
    weights: tuple[fx.Node, ...]
    args: tuple[Any, ...]
    outputs: tuple[Path, ...] | None = None


def kernels(root: fx.GraphModule, products: GraphProducts) -> dict[str, list[fx.Node]]:
    """The calls by the modules that they are of, where all uses of a module's Parameters are one such operator.

    Args:
        root: the graph.
        found: its products; a module that these are of stays as it is.
    """
    kept = {"", *(call.owner for call in products.calls)}
    by_owner: dict[str, list[fx.Node]] = {}
    for node in root.graph.nodes:
        kernel = kernel_of(node)
        places = [place_of(root, node, weight) for weight in kernel.weights] if kernel else []
        if kernel and len({owner for owner, _ in places} - kept) == 1 and _whole(root, places, kernel, products):
            by_owner.setdefault(places[0][0], []).append(node)
    return {
        owner: calls for owner, calls in by_owner.items() if len({repr(_read(call).layer()) for call in calls}) == 1
    }


def input_of(node: fx.Node) -> Any:
    """The node of what the layer is called with."""
    return _read(node).args[0]


def restore(root: fx.GraphModule, owner: str, calls: list[fx.Node]) -> nn.Module:
    """Put the layer in the place of its module, and calls of it in the place of the operator's."""
    layer = _read(calls[0]).layer()
    put(root, owner, layer)
    refresh(layer)
    layer.training = root.training
    for node in calls:
        _reroute(root.graph, node, owner)
    return layer


def _whole(root: fx.GraphModule, places: list[tuple[str, str]], kernel: Kernel, products: GraphProducts) -> bool:
    """Whether the owner is nothing but this layer, and nothing else uses its Parameters in a way that is not known."""
    module = attribute(root, places[0][0])
    if type(module) is not nn.Module or module._modules or module._buffers:
        return False
    own = [name for name, parameter in module._parameters.items() if parameter is not None]
    expected = [name for name, parameter in kernel.layer()._parameters.items() if parameter is not None]
    names = [name for _, name in places]
    return sorted(own) == sorted(names) == sorted(expected) and not any(
        id(parameter) in products.problems for parameter in module._parameters.values()
    )


def refresh(layer: nn.Module) -> None:
    """Recurrent layers keep a list of their Parameters beside."""
    if isinstance(layer, nn.RNNBase):
        layer._flat_weights = [layer._parameters.get(name) for name in layer._flat_weights_names]


def _reroute(graph: fx.Graph, node: fx.Node, owner: str) -> None:
    kernel = _read(node)  # now: what it is called with may have been replaced
    with graph.inserting_before(node):
        new = graph.create_node("call_module", owner, kernel.args)
        new.meta.update(node.meta)
        if kernel.outputs is None:
            node.replace_all_uses_with(new)
        for user in list(node.users):
            result = new
            for at in kernel.outputs[user.args[1]] if kernel.outputs else ():  # type: ignore[index]
                result = graph.call_function(operator.getitem, (result, at))
            result.meta.update(user.meta)
            user.replace_all_uses_with(result)
            graph.erase_node(user)
    graph.erase_node(node)


def _read(node: fx.Node) -> Kernel:
    kernel = kernel_of(node)
    assert kernel is not None
    return kernel


def kernel_of(node: fx.Node) -> Kernel | None:
    """What the node is as one such call, or None."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload) or target.namespace != "aten":
        return None
    reader = _READERS.get(f"{target._opname}.{target._overloadname}")
    kernel = reader and reader(*node.args, **node.kwargs)
    if kernel is None or not all(isinstance(weight, fx.Node) for weight in kernel.weights):
        return None
    return kernel if kernel.outputs is None or all(user.target is operator.getitem for user in node.users) else None


def _embedding(weight: Any, ids: Any, padding_idx: int = -1, scale: bool = False, sparse: bool = False) -> Any:
    def layer() -> nn.Module:
        rows, channels = _shape(weight)
        padding = None if padding_idx < 0 else padding_idx
        return nn.Embedding(rows, channels, padding, None, 2.0, scale, sparse, device="meta")

    return Kernel(layer, (weight,), (ids,))


def _shape(node: fx.Node) -> torch.Size:
    value = attribute(node.graph.owning_module, str(node.target))
    assert isinstance(value, Parameter)
    return value.shape


def _recurrent(cls: Any, **fixed: Any) -> Callable[..., Any]:
    def read(
        x: Any, hx: Any, weights: Any, biases: bool, layers: int, dropout: float, train: bool, two: bool, first: bool
    ) -> Any:
        if train and dropout:
            return None  # it would stop with `eval()`, and programs compute as they were exported
        projects = cls is nn.LSTM and len(weights) // layers // (1 + two) in (3, 5)

        def layer() -> nn.Module:
            (rows, inputs), (_, outputs) = _shape(weights[0]), _shape(weights[1])
            hidden = rows // {nn.LSTM: 4, nn.GRU: 3}.get(cls, 1)
            given = {"bias": biases, "batch_first": first, "bidirectional": two, "device": "meta", **fixed}
            made: nn.Module = cls(inputs, hidden, layers, **given, **({"proj_size": outputs} if projects else {}))
            return made

        state, outputs = ((tuple(hx),), ((0,), (1, 0), (1, 1))) if cls is nn.LSTM else ((hx,), ((0,), (1,)))
        return Kernel(layer, tuple(weights), (x, *state), outputs)

    return read


def _cell(cls: Any, **fixed: Any) -> Callable[..., Any]:
    def read(x: Any, hx: Any, w_ih: Any, w_hh: Any, b_ih: Any = None, b_hh: Any = None) -> Any:
        def layer() -> nn.Module:
            inputs, hidden = _shape(w_ih)[1], _shape(w_hh)[1]
            made: nn.Module = cls(inputs, hidden, b_ih is not None, device="meta", **fixed)
            return made

        weights = tuple(weight for weight in (w_ih, w_hh, b_ih, b_hh) if weight is not None)
        one = cls is not nn.LSTMCell
        return Kernel(layer, weights, (x, hx if one else tuple(hx)), None if one else ((0,), (1,)))

    return read


_READERS: dict[str, Callable[..., Any]] = {
    "embedding.default": _embedding,
    "lstm.input": _recurrent(nn.LSTM), "gru.input": _recurrent(nn.GRU),
    "rnn_tanh.input": _recurrent(nn.RNN), "rnn_relu.input": _recurrent(nn.RNN, nonlinearity="relu"),
    "lstm_cell.default": _cell(nn.LSTMCell), "gru_cell.default": _cell(nn.GRUCell),
    "rnn_tanh_cell.default": _cell(nn.RNNCell), "rnn_relu_cell.default": _cell(nn.RNNCell, nonlinearity="relu"),
}  # fmt: skip
