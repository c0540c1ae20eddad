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
        before = dict(root.named_modules(remove_duplicate=False))
        bare: dict[int, nn.Module] = {}
        taken = {
            name: bare.setdefault(id(before[name]), _bare_holder(before[name]))
            for name in self.layers
            if name in before
        }
        own: Any = root
        own._plain_graph = PlainGraph(root.graph, taken)
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


@dataclass(frozen=True, eq=False)
class PlainGraph:
    """What an insertion took out of a graph. The graph's module keeps it, so that the conversion can be taken back.

    Attributes:
        graph: as it was.
        modules: by dotted name, in the place of which there are layers now; their Parameters' names, without values.
    """

    graph: fx.Graph
    modules: dict[str, nn.Module]

    def put_back(self, root: fx.GraphModule) -> None:
        """Make the graph what it was, in place, around its Parameters as they are now."""
        for name, module in self.modules.items():
            layer = root.get_submodule(name)
            module._parameters = {leaf: layer._parameters[leaf] for leaf in module._parameters}
            module._buffers, module._non_persistent_buffers_set = layer._buffers, layer._non_persistent_buffers_set
            module._modules, module.training = layer._modules, layer.training
            parent, _, leaf = name.rpartition(".")
            root.get_submodule(parent)._modules[leaf] = module
        remove_root_products(root)
        root.graph = self.graph


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


def remove_root_products(root: Any) -> None:
    """The inverse of `add_root_products` and `note_root`; nothing to do where they were not called."""
    root._modules.pop(ROOT, None)
    for hooks, own in (
        (root._state_dict_hooks, hide_root_products),
        (root._load_state_dict_pre_hooks, find_root_products),
    ):
        for key in [key for key, hook in hooks.items() if getattr(hook, "hook", hook) is own]:
            del hooks[key]
    for name in ("exported_kind", "exported_problems"):
        vars(root).pop(name, None)


def note_root(root: Any, kind: str, problems: Mapping[str, str]) -> None:
    """Note what class the root was, and why some of its own matrices must stay."""
    root.exported_kind, root.exported_problems = kind, dict(problems)


def _bare_holder(module: nn.Module) -> nn.Module:
    bare = _without_tensors(module)
    bare._parameters = dict.fromkeys(module._parameters)
    return bare


def _without_tensors(layer: nn.Module) -> nn.Module:
    bare = copy.copy(layer)
    for name in _TENSORS_AND_CHILDREN:
        vars(bare)[name] = type(vars(layer)[name])()
    if isinstance(bare, nn.RNNBase):
        bare._flat_weights = [None for _ in bare._flat_weights_names]
    return bare
