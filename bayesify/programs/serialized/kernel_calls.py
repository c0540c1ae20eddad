"""Calls of kernels that check none of their arguments: replaced by the operator above them that does, or looked at."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from ...errors import FileRefusedError

if TYPE_CHECKING:
    from torch.export import ExportedProgram

_ATEN = "torch.ops.aten."
_FALSE = {"as_bool": False}
# A kernel -> the operator that calls it after checks, and what that is told besides.
_ABOVE: dict[str, tuple[str, dict[str, Any]]] = {
    f"{_ATEN}_native_batch_norm_legit_no_training.default": (
        f"{_ATEN}batch_norm.default", {"training": _FALSE, "cudnn_enabled": _FALSE},
    ),
}  # fmt: skip


def with_checks(graph: dict[str, Any]) -> None:
    """Have a graph, in its JSON, call the operators above kernels, where it uses their first output alone."""
    for node in graph["nodes"]:
        if node["target"] in _ABOVE and not _used(graph, node["outputs"][1:]):
            node["target"], more = _ABOVE[node["target"]]
            node["inputs"] += [{"name": name, "arg": value, "kind": 2} for name, value in more.items()]
            for given in node["inputs"]:
                given["kind"] = 2
            node["outputs"], node["is_hop_single_tensor_return"] = node["outputs"][:1], None


def _used(graph: dict[str, Any], outputs: list[dict[str, Any]]) -> bool:
    names = {output["as_tensor"]["name"] for output in outputs if "as_tensor" in output}
    read = [given["arg"] for node in graph["nodes"] for given in node["inputs"]] + graph["outputs"]
    return any(name in names for name in _names(read))


def _names(value: Any) -> list[str]:
    if isinstance(value, dict):
        own = [value["name"]] if isinstance(value.get("name"), str) else []
        return own + [name for inner in value.values() for name in _names(inner)]
    return [name for inner in value for name in _names(inner)] if isinstance(value, list) else []


def refuse_unchecked(program: ExportedProgram, tensors: Mapping[str, Tensor]) -> None:
    """Refuse calls that would read behind their tensors: of operators that torch itself does not check.

    Raises:
        FileRefusedError: a weight norm whose length is not its direction's, or bags that begin before their first row.
    """
    held = dict(zip(program.graph.find_nodes(op="placeholder"), program.graph_signature.input_specs, strict=True))
    known: dict[Any, Tensor | None] = {node: tensors.get(str(spec.target)) for node, spec in held.items()}
    for graph in (module.graph for module in program.graph_module.modules() if isinstance(module, fx.GraphModule)):
        for node in graph.nodes:
            packet = getattr(node.target, "overloadpacket", None)
            if packet is torch.ops.aten._weight_norm and not _fits(node, known):
                raise FileRefusedError("its program has a weight norm whose parts do not fit; refused")
            if packet is torch.ops.aten.embedding_bag and not _begins(node, held, known):
                raise FileRefusedError("its program has bags whose beginnings are not in their rows; refused")


def _fits(node: Any, known: Mapping[Any, Tensor | None]) -> bool:
    given: dict[str, Any] = {**dict(zip(("v", "g", "dim"), node.args, strict=False)), **node.kwargs}
    direction, length, dim = known.get(given.get("v")), known.get(given.get("g")), given.get("dim", 0)
    if direction is None or length is None or dim not in range(-1, direction.dim()):
        return False
    wanted = [1] * direction.dim() if dim >= 0 else []
    if dim >= 0:
        wanted[dim] = direction.shape[dim]
    return list(length.shape) == wanted


def _begins(node: Any, held: Mapping[Any, Any], known: Mapping[Any, Tensor | None]) -> bool:
    offsets = node.args[2] if len(node.args) > 2 else node.kwargs.get("offsets")
    values = known.get(offsets)
    if values is None:
        return offsets in held and held[offsets].target is None  # the caller's own
    return values.is_meta or bool((values >= 0).all())
