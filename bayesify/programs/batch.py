"""Where the examples of a batch are in a program: its dynamic batch size, found again in the sizes of values."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

from torch import Tensor, fx

from ..nn.part import LEADING, TRAILING


@dataclass(frozen=True)
class Batch:
    """The batch of a program: its size as a symbol, and the input and its dimension that have it."""

    symbol: Any
    input: fx.Node
    dim: int


def batch_of(graph: fx.Graph) -> Batch | None:
    """The batch, as the first dynamic dimension of the first input that has one; None where no size is dynamic."""
    inputs = [(node, value) for node in graph.nodes if node.op == "placeholder" and (value := _value(node)) is not None]
    sizes = ((node, dim, _symbol(size)) for node, value in inputs for dim, size in enumerate(value.shape))
    return next((Batch(symbol, node, dim) for node, dim, symbol in sizes if symbol is not None), None)


def layout(node: fx.Node, batch: Batch | None) -> int:
    """Which dimension of a node's value holds the examples, or how they are folded into its first one.

    0 where no dimension has the batch's size, or where nothing is known of sizes.
    """
    value = _value(node)
    if batch is None or value is None:
        return 0
    at = _batch_at(value, batch)
    if at is not None:
        return at
    rows = _symbol(value.shape[0]) if value.dim() > 1 else None
    return _folded(node, rows, batch) if rows is not None and batch.symbol in rows.free_symbols else 0


def _folded(node: fx.Node, rows: Any, batch: Batch) -> int:
    """Look upstream, among values of as many rows, for the one that was folded."""
    waiting, seen = [node], {node}
    while waiting:
        for each in waiting.pop().all_input_nodes:
            value = _value(each)
            if value is None or value.dim() == 0 or each in seen:
                continue
            seen.add(each)
            at = _batch_at(value, batch)
            sizes = [_symbol(size) if _symbol(size) is not None else size for size in value.shape]
            if at == 0 or (at is not None and all(size == 1 for size in sizes[:at])):
                return LEADING
            if at is not None and prod(sizes[: at + 1]) == rows:
                return TRAILING
            if sizes[0] == rows:
                waiting.append(each)
    return 0


def _batch_at(value: Tensor, batch: Batch) -> int | None:
    return next((dim for dim, size in enumerate(value.shape) if _symbol(size) == batch.symbol), None)


def _value(node: fx.Node) -> Tensor | None:
    value = node.meta.get("val")
    return value if isinstance(value, Tensor) else None


def _symbol(size: Any) -> Any:
    """The sympy expression of a dynamic size; None of a fixed one."""
    inner = getattr(size, "node", None)
    return None if inner is None else inner.expr
