"""What `layered` did to one graph, as data: it is found once, for the plan, and repeated on the model that converts."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import fx, nn

from .fused_operators import refresh
from .graph_module import find_root_products, hide_root_products, whole
from .part import ROOT
from .torch_layers import put

_TENSORS_AND_CHILDREN = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set")


@dataclass(frozen=True, eq=False)
class Insertion:
    """The layers that a graph calls for its products, and the graph that calls them. Holds no tensor of the model.

    Attributes:
        layers: the layers by dotted name, parents first, without Parameters, buffers and children.
        root_parameters: the names of the Parameters that the root multiplies by itself.
        graph: the rewritten graph.
        kind, problems: the root's own `exported_kind` and `exported_problems`.
    """

    layers: dict[str, nn.Module]
    root_parameters: tuple[str, ...]
    graph: fx.Graph
    kind: str
    problems: dict[str, str] = field(default_factory=dict)

    def repeat(self, root: fx.GraphModule) -> None:
        """Put copies of the layers, and of the graph, in the place of those of a graph as it was before, in place."""
        copies = {id(layer): copy.deepcopy(layer) for layer in self.layers.values()}
        for name, layer in self.layers.items():
            if name == ROOT:
                add_root_products(root, copies[id(layer)], self.root_parameters)
            else:
                put(root, name, copies[id(layer)])
                refresh(copies[id(layer)])
        note_root(root, self.kind, self.problems)
        whole(root)
        root.graph = copy.deepcopy(self.graph)


def insertion(before: Mapping[str, nn.Module], root: fx.GraphModule) -> Insertion:
    """What was inserted into a graph.

    Args:
        before: the modules that it had, by name.
        root: the graph, with its layers.
    """
    bare: dict[int, nn.Module] = {}
    layers = {
        name: bare.setdefault(id(module), _without_tensors(module))
        for name, module in root.named_modules(remove_duplicate=False)
        if before.get(name) is not module
    }
    own: Any = root
    reads = tuple(root.get_submodule(ROOT)._parameters) if ROOT in layers else ()
    return Insertion(layers, reads, copy.deepcopy(root.graph), own.exported_kind, own.exported_problems)


def add_root_products(root: nn.Module, part: nn.Module, names: tuple[str, ...]) -> None:
    """Add the part of what the root multiplies by itself, around these Parameters of the root."""
    part._parameters = {name: root._parameters[name] for name in names}
    root.add_module(ROOT, part)
    root.register_state_dict_post_hook(hide_root_products)  # type: ignore[no-untyped-call]
    root.register_load_state_dict_pre_hook(find_root_products)  # type: ignore[no-untyped-call]


def note_root(root: Any, kind: str, problems: Mapping[str, str]) -> None:
    """Note what class the root was, and why some of its own matrices must stay."""
    root.exported_kind, root.exported_problems = kind, dict(problems)


def _without_tensors(layer: nn.Module) -> nn.Module:
    bare = copy.copy(layer)
    for name in _TENSORS_AND_CHILDREN:
        vars(bare)[name] = type(vars(layer)[name])()
    if isinstance(bare, nn.RNNBase):
        bare._flat_weights = [None for _ in bare._flat_weights_names]
    return bare
