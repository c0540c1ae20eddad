"""Where the examples of a batch are in a program: its dynamic batch size, found again in the sizes of what a layer takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx


@dataclass(frozen=True)
class Batch:
    """The batch of a program: its size as a symbol, and an input that has the examples along its first dimension."""

    symbol: Any
    like: fx.Node | None


def batch_of(graph: fx.Graph) -> Batch | None:
    """The batch, as the first dynamic dimension of the first input that has one; None where no size is dynamic."""
    inputs = [(node, value) for node in graph.nodes if node.op == "placeholder" and (value := _value(node)) is not None]
    symbol = next((found for _, value in inputs for size in value.shape if (found := _symbol(size)) is not None), None)
    if symbol is None:
        return None
    leads = (node for node, value in inputs if value.dim() > 1 and _symbol(value.shape[0]) == symbol)
    return Batch(symbol, next(leads, None))


def batch_dim(node: fx.Node, batch: Batch | None) -> int:
    """Which dimension of a node's value has the batch's size; 0 where none has, or where nothing is known of sizes."""
    value = _value(node)
    if batch is None or value is None:
        return 0
    return next((dim for dim, size in enumerate(value.shape) if _symbol(size) == batch.symbol), 0)


def is_folded(node: fx.Node, batch: Batch | None) -> bool:
    """Whether a matrix has its examples' rows folded into its first dimension, and there is an input to unfold them by."""
    value = _value(node)
    if batch is None or batch.like is None or value is None or value.dim() != 2:
        return False
    symbol = _symbol(value.shape[0])
    return symbol is not None and symbol != batch.symbol and batch.symbol in symbol.free_symbols


def _value(node: fx.Node) -> Tensor | None:
    value = node.meta.get("val")
    return value if isinstance(value, Tensor) else None


def _symbol(size: Any) -> Any:
    """The sympy expression of a dynamic size; None of a fixed one."""
    inner = getattr(size, "node", None)
    return None if inner is None else inner.expr
