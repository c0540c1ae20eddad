"""Programs: models that are a graph of operators, from torch.export or torch.fx, with their weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.parameter import Parameter

from ..errors import UsageError
from .graphs import Graph
from .inputs import checked
from .layering import has_products, layered
from .text import build, first_line, pruned, refuse


class Program(Graph):
    """A model that was exported: its graph, its modules under the names that they had, its weights in them.

    It computes in the mode, train or eval, that it was exported in: `train()` and `eval()` only set the flag.
    """

    _text: str | None = None
    _unwritten = ""  # why there is no text

    def train(self, mode: bool = True) -> Program:
        """Set the flag `training` on all modules; what the graph computes stays as it was exported."""
        for module in self.modules():
            module.training = mode
        return self

    def eval(self) -> Program:
        """As `train(False)`."""
        return self.train(False)

    def __reduce__(self) -> Any:
        if self._text is None:
            raise UsageError(f"this exported program cannot be written: {self._unwritten}; save its state_dict()")
        from .state import rebuilt, state_of

        return rebuilt, (self._text, state_of(self))


def from_text(text: str, tensors: Mapping[str, Tensor], constants: Mapping[str, Tensor]) -> Program:
    """The program of a pruned text (see `exported`), around these tensors.

    Raises:
        FileRefusedError: the text holds what could run code, or what torch cannot rebuild.
    """
    return _unlifted(build(text, tensors, constants), text)


def from_exported(program: torch.export.ExportedProgram) -> Program:
    """The program of torch.export, around its own Parameters."""
    from torch._export.serde.serialize import serialize

    text, why = None, ""
    try:
        written = serialize(program, serialize_state_dict=False, serialize_constants=False).exported_program
        text = pruned(written)
        refuse(text)
    except Exception as error:
        # torch writes no program with objects of foreign kinds; it converts all the same and cannot be saved
        text, why = None, first_line(error)
    made = _unlifted(program, text)
    made._unwritten = why
    return made


def _unlifted(program: torch.export.ExportedProgram, text: str | None) -> Program:
    plain = program.module(check_guards=False)
    made = Program(plain, plain.graph, "Program")
    made._text = text
    _share_again(made)
    layered(made, always=True)
    checked(made.graph, program.range_constraints)
    made.recompile()
    for node in made.graph.nodes:
        node.meta.clear()
    return made.eval()


def _share_again(made: nn.Module) -> None:
    """Parameters that are one storage under several names, as tied weights are after loading, become one again."""
    first: dict[Any, Parameter] = {}
    for module in made.modules():
        for name, each in module._parameters.items():
            if each is not None:
                key = (each.data_ptr(), each.shape, each.stride()) if each.numel() and not each.is_meta else id(each)
                module._parameters[name] = first.setdefault(key, each)


def prepared(model: Any) -> Any:
    """The model as plan and convert treat it; a program or a graph with products of its own shares its Parameters.

    An exported program becomes a Program; torch.fx graphs that multiply by Parameters themselves get layers for that.
    """
    if is_exported(model):
        return from_exported(model)
    if not any(has_products(graph) for graph in graphs(model)):
        return model
    shared = sharing(model)
    for graph in graphs(shared):
        layered(graph)
    return shared


def graphs(model: nn.Module) -> list[fx.GraphModule]:
    """The torch.fx graphs in a model, itself too, but for programs: those have their layers from the start."""
    return [each for each in model.modules() if isinstance(each, fx.GraphModule) and not isinstance(each, Program)]


def is_exported(model: object) -> bool:
    """Whether it is an exported program, as torch.export.export returns. By name: importing torch.export takes time."""
    return f"{type(model).__module__}.{type(model).__qualname__}" == "torch.export.exported_program.ExportedProgram"


def sharing(model: nn.Module) -> nn.Module:
    """A copy of the model around its very Parameters and buffers: what `layered` can change in place of the model."""
    if isinstance(model, fx.GraphModule) and graphs(model) == [model]:
        return fx.GraphModule(model, copy.deepcopy(model.graph), type(model).__name__)
    return copy.deepcopy(model, {id(each): each for each in (*model.parameters(), *model.buffers())})
