"""What a node of a graph computes, as one of torch's functions: traced by torch.fx as such, or an aten operator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from ..nn.torch_functions import FUNCTIONS, MULTIPLICATIONS, NAMES, by_place


class Call(NamedTuple):
    """A call of one of torch's functions, with nodes among its arguments; products and views by place."""

    function: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def name(self) -> str | None:
        """What a program's steps call the function, where they may call it."""
        return NAMES.get(self.function)


def call_of(node: fx.Node) -> Call | None:
    """The function that a node calls, aten operators and attributes of tensors among them.

    None for a node that calls a module or nothing.
    """
    if node.op == "call_method":
        return _by_place(getattr(Tensor, str(node.target), None), node)
    if node.op != "call_function":
        return None
    target: Any = node.target
    if isinstance(target, torch._ops.OpOverload) and target.namespace == "aten" and target._opname in _ATEN:
        return _ATEN[target._opname](*node.args, **node.kwargs)
    if target is getattr and hasattr(attribute := getattr(Tensor, str(node.args[1]), None), "__get__"):
        return Call(attribute.__get__, node.args[:1], {})
    return _by_place(target, node)


def _by_place(function: Any, node: fx.Node) -> Call:
    return Call(function, *by_place(function, node.args, node.kwargs))


def is_recurrent(node: fx.Node) -> bool:
    """Whether the node is one of aten's recurrent layers or cells."""
    return isinstance(node.target, torch._ops.OpOverload) and node.target._opname in RECURRENT


RECURRENT = ("lstm", "gru", "rnn_tanh", "rnn_relu", "lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell")


def _same(function: Any) -> Callable[..., Call]:
    return lambda *args, **kwargs: Call(function, args, kwargs)


def _einsum(equation: str, tensors: Any, path: Any = None) -> Call:
    return Call(torch.einsum, (equation, *tensors), {})


def _tensordot(a: Any, b: Any, of_a: Any, of_b: Any) -> Call:
    return Call(torch.tensordot, (a, b, (of_a, of_b)), {})


def _convolution(
    x: Any, w: Any, b: Any, stride: Any, padding: Any, dilation: Any, transposed: bool, more: Any, groups: int
) -> Call:
    if transposed:
        given = (x, w, b, stride, padding, more, groups, dilation)
        return Call(FUNCTIONS[f"conv_transpose{len(stride)}d"], given, {})
    return Call(FUNCTIONS[f"conv{len(stride)}d"], (x, w, b, stride, padding, dilation, groups), {})


def _slice(x: Any, dim: int = 0, start: Any = None, end: Any = None, step: int = 1) -> Call:
    return Call(FUNCTIONS["getitem"], (x, _at(dim, slice(start, end, step))), {})


def _select(x: Any, dim: int, index: int) -> Call:
    return Call(FUNCTIONS["getitem"], (x, _at(dim, index)), {})


def _at(dim: int, index: Any) -> tuple[Any, ...]:
    """The index of one dimension, counted from either end; of one beyond all that a tensor can have, no tensor's."""
    if dim < 0:
        return (..., index, *[slice(None)] * (min(-dim, _MOST_DIMS) - 1))
    return (*[slice(None)] * min(dim, _MOST_DIMS), index)


_MOST_DIMS = 65


def _expand(x: Any, sizes: Any, implicit: bool = False) -> Call:
    return Call(FUNCTIONS["expand"], (x, sizes), {})


def _to(x: Any, dtype: Any = None, *_: Any, **others: Any) -> Call:
    return Call(FUNCTIONS["to"], (x, others.get("dtype", dtype)), {})


# aten's operators that take their arguments as torch's functions of these names do, and the rest
_SAME = (
    *(multiplication.name for multiplication in MULTIPLICATIONS.values()), "t", "transpose", "permute", "reshape",
    "view", "flatten", "unflatten", "contiguous", "unsqueeze", "squeeze", "chunk", "split", "unbind", "narrow", "clone",
)  # fmt: skip
_ATEN: dict[str, Callable[..., Call]] = {
    **{name: _same(FUNCTIONS[name]) for name in _SAME},
    **{name: _same(Tensor.size) for name in ("size", "sym_size", "dim", "numel", "_assert_tensor_metadata")},
    "embedding": _same(torch.embedding), "embedding_bag": _same(F.embedding_bag),
    "split_with_sizes": _same(torch.split), "_unsafe_view": _same(Tensor.view), "numpy_T": _same(torch.t),
    "einsum": _einsum, "tensordot": _tensordot,
    "convolution": _convolution, "slice": _slice, "select": _select, "expand": _expand,
    "to": _to, "_to_copy": _to,
}  # fmt: skip
