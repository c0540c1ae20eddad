"""Graphs of torch.fx that keep all that they hold when they are copied and pickled, as other modules do.

fx itself copies what the graph names, and pickles its code: hooks and other attributes, the ledger too, would be lost.
"""

from __future__ import annotations

import copy
import warnings
from typing import Any

from torch import fx, nn

from .part import ROOT

_HOOKS = tuple(name for name in vars(nn.Module()) if "hooks" in name)


class Graph(fx.GraphModule):
    """A graph whose copies and pickles keep its hooks and attributes."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Graph:
        copied: Graph = object.__new__(_class_of_one(type(self).__name__, type(self).__bases__))
        memo[id(self)] = copied
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch's own, about copying its structures of inputs
            copied.__dict__.update(copy.deepcopy(self.__dict__, memo))
        copied._graph.owning_module = copied
        copied.recompile()
        return copied

    def __reduce__(self) -> Any:
        rebuild, (body, imports) = super().__reduce__()
        hooks = {name: body.pop(name) for name in _HOOKS if name in body}
        body.pop("_plain_graph", None)  # fx pickles a graph as code, which this is not; operators cannot be pickled
        # the tracer that made the graph may look into modules, which are to stay as they are
        return again, (rebuild, {**body, "_tracer_cls": None}, imports), hooks


def again(rebuild: Any, body: dict[str, Any], imports: str) -> fx.GraphModule:
    """The graph that was pickled, without its hooks."""
    made: fx.GraphModule = rebuild(body, imports)
    whole(made)
    return made


def whole(graph: fx.GraphModule) -> None:
    """Make it a Graph, in place."""
    if isinstance(graph, Graph):
        return
    own = [base for base in type(graph).__bases__ if base is not fx.GraphModule]
    graph.__class__ = _class_of_one(type(graph).__name__, (Graph, *own), _plain=type(graph))
    graph.recompile()


def unwhole(graph: fx.GraphModule) -> None:
    """The inverse of `whole`, in place."""
    if not isinstance(graph, Graph):
        return
    own = [base for base in type(graph).__bases__ if base is not Graph]
    torchs = {"__module__": fx.GraphModule.__module__, "__qualname__": "GraphModule.__new__.<locals>.GraphModuleImpl"}
    before: Any = vars(type(graph)).get("_plain")  # a copy has a class of its own, as torch's copies have
    graph.__class__ = before or _class_of_one(type(graph).__name__, (*own, fx.GraphModule), **torchs)
    graph.recompile()


def _class_of_one(name: str, bases: tuple[type, ...], **members: Any) -> Any:
    """Each graph has a class of its own, which holds its code; fx knows such a class by its qualified name."""
    return type(name, bases, {"__qualname__": "GraphModuleImpl", **members})


def hide_root_products(root: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    """A hook on the state_dict of a root with products of its own: the names are those that the root had."""
    for key in [key for key in state if key.startswith(f"{prefix}{ROOT}.")]:
        state[prefix + key.removeprefix(f"{prefix}{ROOT}.")] = state.pop(key)


def find_root_products(root: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """The hook that takes `hide_root_products` back on loading."""
    own = root.get_submodule(ROOT)
    for leaf in (*own._parameters, *own._buffers):
        if f"{prefix}{leaf}" in state:
            value = state[f"{prefix}{leaf}"] if leaf in root._parameters else state.pop(f"{prefix}{leaf}")
            state[f"{prefix}{ROOT}.{leaf}"] = value
