"""Programs: models that are a graph of operators, from torch.export or torch.fx, with their weights."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.parameter import Parameter

from ..errors import UsageError
from ..nn.base import Variational
from ..nn.folded_batches import watch_examples, watched_arguments
from ..nn.kl import Ledger
from ..nn.posterior_tensors import posterior_tensors
from ..nn.registry import variant
from ..nn.settings import Settings
from ..nn.starts import put_starts, starts_of
from .fused_operators import refresh
from .graph_module import Graph, unwhole, whole
from .input_checks import checked
from .insertion import Insertion, insertion
from .kernel_checks import guard_kernels
from .layer_insertion import has_products, layered
from .serialized.checked_text import build, first_line, pruned, refuse


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
    guard_kernels(made)
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
        for name, own in module._parameters.items():
            if own is not None:
                key = (own.data_ptr(), own.shape, own.stride()) if own.numel() and not own.is_meta else id(own)
                module._parameters[name] = first.setdefault(key, own)


def prepared(model: Any) -> tuple[Any, dict[str, Insertion]]:
    """The model as it is planned, and what was inserted into its graphs for that, by their dotted names.

    An exported program becomes a Program; torch.fx graphs that multiply by Parameters themselves get layers for that,
    on a copy around the model's own Parameters.
    """
    if is_exported(model):
        return from_exported(model), {}
    if not any(has_products(graph) for graph in graphs(model).values()):
        return model, {}
    shared = sharing(model)
    return shared, {name: _inserted(graph) for name, graph in graphs(shared).items() if has_products(graph)}


def _inserted(graph: fx.GraphModule) -> Insertion:
    before = dict(graph.named_modules(remove_duplicate=False))
    layered(graph)
    return insertion(before, graph)


def insert_layers(model: nn.Module, insertions: Mapping[str, Insertion]) -> None:
    """Give the model's graphs, in place, the layers that its plan was made with: see `prepared`."""
    for name, graph in graphs(model).items():
        whole(graph)
        if name in insertions:
            insertions[name].repeat(graph)


def take_out_layers(model: nn.Module) -> None:
    """The inverse of `insert_layers`, once no layer is variational any more."""
    for graph in graphs(model).values():
        plain = vars(graph).pop("_plain_graph", None)
        if plain is not None:
            plain.put_back(graph)
        unwhole(graph)


def graphs(model: nn.Module) -> dict[str, fx.GraphModule]:
    """The torch.fx graphs in a model by name, itself too, except programs: those have their layers from the start."""
    named = model.named_modules()
    return {
        name: graph for name, graph in named if isinstance(graph, fx.GraphModule) and not isinstance(graph, Program)
    }


def is_exported(model: object) -> bool:
    """Whether it is an exported program, as torch.export.export returns. By name: importing torch.export takes time."""
    return f"{type(model).__module__}.{type(model).__qualname__}" == "torch.export.exported_program.ExportedProgram"


def sharing(model: nn.Module) -> nn.Module:
    """A copy of the model around its very Parameters and buffers: what `layered` can change in place of the model."""
    if isinstance(model, fx.GraphModule) and list(graphs(model)) == [""]:
        return fx.GraphModule(model, copy.deepcopy(model.graph), type(model).__name__)
    return copy.deepcopy(model, {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())})


def state_of(program: Program) -> dict[str, Any]:
    """All that `rebuilt` needs beside the text. The tensors are the program's own: pickle sees that they are shared."""
    layers = {name: module for name, module in program.named_modules() if isinstance(module, Variational)}
    named = program.named_modules(remove_duplicate=False)
    places = [(name, module) for name, module in named]
    return {
        "parameters": {_join(name, leaf): own for name, module in places for leaf, own in module._parameters.items()},
        "buffers": {_join(name, leaf): own for name, module in places for leaf, own in module._buffers.items()},
        "layers": {name: (layer.method, layer._settings) for name, layer in layers.items()},
        "examples along": watched_arguments(program),
        "kl": [name for name, value in vars(program).items() if isinstance(value, Ledger)],
        "training": program.training,
        "starts": starts_of(dict(program.named_modules())),
    }


def rebuilt(text: str, state: dict[str, Any]) -> Program:
    """The program that `state_of` was asked about. The text is checked as that of any file is.

    Raises:
        FileRefusedError: the text holds what could run code.
    """
    given = {**state["parameters"], **state["buffers"]}
    program = from_text(text, *_on_meta(text, given))
    modules = dict(program.named_modules())
    for name, (method, settings) in state["layers"].items():
        _make_variational(modules[name], method, settings, name, given)
    for name, module in program.named_modules(remove_duplicate=False):
        for leaf in module._parameters:
            module._parameters[leaf] = state["parameters"][_join(name, leaf)]
        for leaf in module._buffers:
            module._buffers[leaf] = state["buffers"][_join(name, leaf)]
        refresh(module)
    if state.get("examples along"):
        watch_examples(program, [(tuple(path), int(dim)) for path, dim in state["examples along"]])
    for name in state["kl"]:
        setattr(program, name, Ledger(program))
    put_starts(modules, state.get("starts", {}))
    return program.train(bool(state["training"]))


def _make_variational(module: Any, method: Any, settings: Settings, name: str, given: dict[str, Any]) -> None:
    cls = variant(type(module), method)
    assert cls is not None
    module.__class__ = cls
    own = {leaf: given[_join(name, leaf)] for leaf in _added(module, settings) if _join(name, leaf) in given}
    module.add_posterior(settings, own)


def _added(module: nn.Module, settings: Settings) -> list[str]:
    return list(posterior_tensors(module, settings))


def _on_meta(text: str, given: dict[str, Tensor | None]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Stand-ins for the program's own tensors, sharing a Parameter where the given ones do."""
    stand_ins: dict[int, Tensor] = {}
    by_kind: dict[str, dict[str, Tensor]] = {"parameter": {}, "buffer": {}, "tensor_constant": {}}
    for spec in json.loads(text)["graph_module"]["signature"]["input_specs"]:
        kind = next(iter(spec))
        if kind not in by_kind:
            continue
        name = spec[kind][f"{kind}_name"]
        value = given[name]
        assert isinstance(value, Tensor)
        by_kind[kind][name] = stand_ins.setdefault(id(value), _stand_in(value))
        if kind == "buffer" and not spec[kind]["persistent"]:
            by_kind["tensor_constant"][name] = by_kind[kind].pop(name)
    return by_kind["parameter"] | by_kind["buffer"], by_kind["tensor_constant"]


def _stand_in(value: Tensor) -> Tensor:
    empty = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
    return Parameter(empty, value.requires_grad) if isinstance(value, Parameter) else empty


def _join(name: str, leaf: str) -> str:
    return f"{name}.{leaf}" if name else leaf
