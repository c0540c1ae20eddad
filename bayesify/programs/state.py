"""What a program is beside its text: its tensors and its posteriors, as plain values that a restricted reader reads."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import Parameter

from ..kl import Ledger
from ..nn.folding import watch_examples, watched_dim
from ..nn.registry import variant
from ..nn.settings import Settings
from ..nn.state import posterior_tensors
from ..nn.variational import Variational
from .kernels import refresh
from .program import Program, from_text


def state_of(program: Program) -> dict[str, Any]:
    """All that `rebuilt` needs beside the text. The tensors are the program's own: pickle sees that they are shared."""
    layers = {name: module for name, module in program.named_modules() if isinstance(module, Variational)}
    named = program.named_modules(remove_duplicate=False)
    places = [(name, module) for name, module in named]
    return {
        "parameters": {_join(name, leaf): each for name, module in places for leaf, each in module._parameters.items()},
        "buffers": {_join(name, leaf): each for name, module in places for leaf, each in module._buffers.items()},
        "layers": {name: (layer.method, layer._settings, layer._quiet) for name, layer in layers.items()},
        "examples along": watched_dim(program),
        "kl": [name for name, value in vars(program).items() if isinstance(value, Ledger)],
        "training": program.training,
    }


def rebuilt(text: str, state: dict[str, Any]) -> Program:
    """The program that `state_of` was asked about. The text is checked as that of any file is.

    Raises:
        FileRefusedError: the text holds what could run code.
    """
    given = {**state["parameters"], **state["buffers"]}
    program = from_text(text, *_on_meta(text, given))
    modules = dict(program.named_modules())
    for name, (method, settings, quiet) in state["layers"].items():
        _make_variational(modules[name], method, settings, quiet, name, given)
    for name, module in program.named_modules(remove_duplicate=False):
        for leaf in module._parameters:
            module._parameters[leaf] = state["parameters"][_join(name, leaf)]
        for leaf in module._buffers:
            module._buffers[leaf] = state["buffers"][_join(name, leaf)]
        refresh(module)
    if state.get("examples along") is not None:
        watch_examples(program, int(state["examples along"]))
    for name in state["kl"]:
        setattr(program, name, Ledger(program))
    return program.train(bool(state["training"]))


def _make_variational(
    module: Any, method: Any, settings: Settings, quiet: bool, name: str, given: dict[str, Any]
) -> None:
    cls = variant(type(module), method)
    assert cls is not None
    module.__class__ = cls
    own = {leaf: given[_join(name, leaf)] for leaf in _added(module, settings) if _join(name, leaf) in given}
    module.add_posterior(settings, own)
    module._quiet = bool(quiet)


def _added(module: nn.Module, settings: Settings) -> list[str]:
    return list(posterior_tensors(module, settings))


def _on_meta(text: str, given: dict[str, Tensor | None]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Stand-ins for the program's own tensors, sharing a Parameter where the given ones do."""
    stand_ins: dict[int, Tensor] = {}
    found: dict[str, dict[str, Tensor]] = {"parameter": {}, "buffer": {}, "tensor_constant": {}}
    for spec in json.loads(text)["graph_module"]["signature"]["input_specs"]:
        kind = next(iter(spec))
        if kind not in found:
            continue
        name = spec[kind][f"{kind}_name"]
        value = given[name]
        assert isinstance(value, Tensor)
        found[kind][name] = stand_ins.setdefault(id(value), _stand_in(value))
        if kind == "buffer" and not spec[kind]["persistent"]:
            found["tensor_constant"][name] = found[kind].pop(name)
    return found["parameter"] | found["buffer"], found["tensor_constant"]


def _stand_in(value: Tensor) -> Tensor:
    empty = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
    return Parameter(empty, value.requires_grad) if isinstance(value, Parameter) else empty


def _join(name: str, leaf: str) -> str:
    return f"{name}.{leaf}" if name else leaf
