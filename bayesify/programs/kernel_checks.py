"""Calls that check none of their arguments, in programs: checked when they run, with what they are given.

Kernels of torch that would read behind their tensors, and Python's arithmetic, whose numbers have no end. A file says
what stands in a program, and what sizes its tensors have; only at the call itself are they what they are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import has_side_effect

from ..errors import FileRefusedError


def guard_kernels(root: nn.Module) -> None:
    """Have every graph in it, branches too, look at the arguments of such a call first."""
    for graph in [module for module in root.modules() if isinstance(module, fx.GraphModule)]:
        for node in list(graph.graph.nodes):
            kernel = _name(node.target)
            if kernel in _KERNELS:
                names, _, _ = _KERNELS[kernel]
                given = {**dict(zip(_names(node.target), node.args, strict=False)), **node.kwargs}
                with graph.graph.inserting_before(node):
                    graph.graph.call_function(check_kernel, (kernel, *map(given.get, names)))
        graph.recompile()


@has_side_effect
def check_kernel(kernel: str, *given: Any) -> None:
    """Refuse a call that would read behind its tensors.

    Raises:
        FileRefusedError: a weight norm whose length is not its direction's, attention with more keys than values or
            fewer, bags that begin before their first row, or arithmetic of other things than numbers of 64 bits.
    """
    if any(isinstance(value, fx.Proxy) for value in given):
        return
    _, fits, problem = _KERNELS[kernel]
    if not fits(*given):
        raise FileRefusedError(f"the program has {problem}; refused")


def _name(target: Any) -> str:
    if isinstance(target, torch._ops.OpOverload):
        return target._opname if target.namespace == "aten" else ""
    return f"_operator.{target.__name__}" if getattr(target, "__module__", None) == "_operator" else ""


def _names(target: Any) -> tuple[str, ...]:
    return tuple(argument.name for argument in target._schema.arguments) if hasattr(target, "_schema") else _OPERANDS


def _lengths(direction: Tensor, length: Tensor, dim: int | None) -> bool:
    dim = dim or 0
    if dim not in range(-1, direction.dim()):
        return False
    wanted = [1] * direction.dim() if dim >= 0 else []
    if dim >= 0:
        wanted[dim] = direction.shape[dim]
    return list(length.shape) == wanted


def _values(key: Tensor, value: Tensor) -> bool:
    return min(key.dim(), value.dim()) > 1 and key.shape[-2] == value.shape[-2]


def _begins(offsets: Tensor | None) -> bool:
    """Compiled code asks when it runs, as torch's own assertions do."""
    if offsets is None or offsets.is_meta:
        return True
    try:
        torch._assert_async((offsets >= 0).all(), "bags begin before their first row")
    except RuntimeError:
        return False
    return True


def _small(left: Any, right: Any) -> bool:
    operands = (left, right)
    return all(isinstance(value, _NUMBERS) for value in operands) and all(
        abs(value) < 1 << 63 for value in operands if isinstance(value, int)
    )


def _small_power(base: Any, exponent: Any) -> bool:
    return _small(base, exponent) and not (isinstance(exponent, int) and abs(exponent) > 64)


_NUMBERS = (int, float, torch.SymInt, torch.SymFloat, torch.SymBool, Tensor)
_OPERANDS = ("left", "right")
_ENDLESS = "arithmetic of numbers without end"
# what a kernel is told that it does not check, how it fits, and what is wrong with it if not
_KERNELS: dict[str, tuple[tuple[str, ...], Callable[..., bool], str]] = {
    "_weight_norm": (("v", "g", "dim"), _lengths, "a weight norm whose parts do not fit"),
    "scaled_dot_product_attention": (("key", "value"), _values, "attention whose keys and values do not fit"),
    "embedding_bag": (("offsets",), _begins, "bags whose beginnings are not in their rows"),
    "_operator.add": (_OPERANDS, _small, _ENDLESS),
    "_operator.mul": (_OPERANDS, _small, _ENDLESS),
    "_operator.mod": (_OPERANDS, _small, _ENDLESS),
    "_operator.pow": (_OPERANDS, _small_power, _ENDLESS),
}
