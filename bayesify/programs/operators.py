"""What a node of a graph computes, as one of torch's functions: traced by torch.fx as such, or an aten operator."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from ..nn.torch_functions import MULTIPLICATIONS, harmless
from .part import PRODUCTS, VIEWS


def function_name(node: fx.Node) -> str | None:
    """What `PRODUCTS` or `VIEWS` calls the node's function, if they have it."""
    call = torch_call(node)
    return call[0] if call else None


def torch_call(node: fx.Node) -> Any:
    """(name in `PRODUCTS` or `VIEWS`, arguments, keyword arguments) of a node, or None for any other."""
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        reader = _ATEN.get(target._opname) if target.namespace == "aten" else None
        return reader and reader(*node.args, **node.kwargs)
    if target is getattr and node.args[1] in ("T", "mT"):
        return "transpose", (node.args[0], -2, -1), {}
    function = getattr(Tensor, str(target), None) if node.op == "call_method" else target
    name = _NAMES.get(function) if node.op in ("call_method", "call_function") else None
    return name and (name, node.args, node.kwargs)


_NAMES: dict[Any, str] = {
    **{function: name for name, function in (PRODUCTS | VIEWS).items()},
    **{found: name for name in VIEWS for where in (torch, Tensor) if (found := getattr(where, name, None))},
    **{
        function: "matmul" for function, reader in MULTIPLICATIONS.items() if reader is MULTIPLICATIONS[operator.matmul]
    },
    Tensor.__getitem__: "getitem",
}


def _same(name: str) -> Callable[..., Any]:
    return lambda *args, **kwargs: (name, args, kwargs)


def _einsum(equation: str, tensors: Any, path: Any = None) -> Any:
    return "einsum", (equation, *tensors), {}


def _convolution(
    x: Any, w: Any, b: Any, stride: Any, padding: Any, dilation: Any, transposed: bool, more: Any, groups: int
) -> Any:
    if transposed:
        return f"conv_transpose{len(stride)}d", (x, w, b, stride, padding, more, groups, dilation), {}
    return f"conv{len(stride)}d", (x, w, b, stride, padding, dilation, groups), {}


def _slice(x: Any, dim: int = 0, start: Any = None, end: Any = None, step: int = 1) -> Any:
    return "getitem", (x, (*[slice(None)] * dim, slice(start, end, step))), {}


def _select(x: Any, dim: int, index: int) -> Any:
    return "getitem", (x, (*[slice(None)] * dim, index)), {}


def _expand(x: Any, sizes: Any, implicit: bool = False) -> Any:
    return "expand", (x, sizes), {}


def _to(x: Any, dtype: Any = None, *_: Any, **others: Any) -> Any:
    return "to", (x, others.get("dtype", dtype)), {}


_ATEN: dict[str, Callable[..., Any]] = {
    **{name: _same(name) for name in PRODUCTS},
    **{name: _same(name) for name in ("t", "transpose", "permute", "reshape", "view", "flatten", "unflatten")},
    **{name: _same(name) for name in ("contiguous", "unsqueeze", "squeeze", "chunk", "split", "unbind", "narrow")},
    "split_with_sizes": _same("split"), "clone": _same("clone"), "expand": _expand,
    "_unsafe_view": _same("view"), "numpy_T": _same("t"),
    "einsum": _einsum, "convolution": _convolution, "slice": _slice, "select": _select, "to": _to, "_to_copy": _to,
}  # fmt: skip
RECURRENT = ("lstm", "gru", "rnn_tanh", "rnn_relu", "lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell")
_LOOKS = (*RECURRENT, "embedding", "embedding_bag", "size", "sym_size", "dim", "numel", "_assert_tensor_metadata")


def is_harmless(node: fx.Node) -> bool:
    """Whether the node asks a weight for its form only, looks rows up, or is a recurrent layer (see `kernels`)."""
    if isinstance(node.target, torch._ops.OpOverload):
        return node.target._opname in _LOOKS
    if node.op == "output":
        return False
    function = getattr(Tensor, str(node.target), None) if node.op == "call_method" else node.target
    return harmless(function) or (function is getattr and node.args[1] in ("shape", "dtype", "device", "ndim"))
