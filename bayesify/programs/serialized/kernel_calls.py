"""Calls of kernels that check none of their arguments: replaced by the operator above them that does."""

from __future__ import annotations

from typing import Any

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
