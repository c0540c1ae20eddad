"""Where the examples of a batch are in a program: its dynamic batch size, traced through the sizes of its values."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

from torch import Tensor, fx

from .part import LEADING, TRAILING


@dataclass(frozen=True)
class Batch:
    """The batch of a program: its size as a symbol, and the input and its dimension that have it."""

    symbol: Any
    input: fx.Node
    dim: int


def batch_of(graph: fx.Graph) -> Batch | None:
    """The batch: of the inputs' dynamic sizes, in their order, the first that most tells for; None where none does.

    An output of a network has a row for each example, and attention and convolutions tell of other dimensions: the
    length of a sequence is not a batch, even where it is the only dynamic size.
    """
    inputs = [(node, value) for node in graph.nodes if node.op == "placeholder" and (value := _value(node)) is not None]
    sizes = ((node, dim, symbol_of(size)) for node, value in inputs for dim, size in enumerate(value.shape))
    dynamic = [Batch(symbol, node, dim) for node, dim, symbol in sizes if symbol is not None]
    if not dynamic:
        return None
    others = set(_of_no_batch(graph))
    (output,) = graph.find_nodes(op="output")
    outputs = [_value(node) for node in output.all_input_nodes]
    results = [_free(value.shape) for value in outputs if value is not None and value.dim()]
    best = min(dynamic, key=lambda size: (size.symbol in others, sum(size.symbol not in free for free in results)))
    return best if best.dim == 0 or best.symbol not in others else None


def _of_no_batch(graph: fx.Graph) -> Iterator[Any]:
    """Sizes of sequences and of images, where the operators tell them."""
    for node in graph.nodes:
        value, name = _value(node), getattr(node.target, "_opname", "")
        if value is not None:
            sizes = [symbol_of(size) for size in value.shape]
            yield from (size for size in sizes if size is not None and sizes.count(size) > 1)
        inputs = [_value(before) for before in node.all_input_nodes]
        given = [tensor for tensor in inputs if tensor is not None and tensor.dim() > 2]
        if name == "scaled_dot_product_attention":
            yield from _free(size for tensor in given for size in tensor.shape[-2:])
        elif name.startswith("conv"):
            yield from _free(given[0].shape[1:] if given else ())


def _free(sizes: Any) -> set[Any]:
    """The symbols in these sizes."""
    return {symbol for size in sizes if symbol_of(size) is not None for symbol in symbol_of(size).free_symbols}


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
    rows = symbol_of(value.shape[0]) if value.dim() > 1 else None
    return _folded(node, rows, batch) if rows is not None and batch.symbol in rows.free_symbols else 0


def _folded(node: fx.Node, rows: Any, batch: Batch) -> int:
    """Look upstream, among values of as many rows, for the one that was folded."""
    waiting, seen = [node], {node}
    while waiting:
        for before in waiting.pop().all_input_nodes:
            value = _value(before)
            if value is None or value.dim() == 0 or before in seen:
                continue
            seen.add(before)
            at = _batch_at(value, batch)
            sizes = [symbol_of(size) if symbol_of(size) is not None else size for size in value.shape]
            if at == 0 or (at is not None and all(size == 1 for size in sizes[:at])):
                return LEADING
            if at is not None and prod(sizes[: at + 1]) == rows:
                return TRAILING
            if sizes[0] == rows:
                waiting.append(before)
    return 0


def _batch_at(value: Tensor, batch: Batch) -> int | None:
    return next((dim for dim, size in enumerate(value.shape) if symbol_of(size) == batch.symbol), None)


def _value(node: fx.Node) -> Tensor | None:
    value = node.meta.get("val")
    return value if isinstance(value, Tensor) else None


def symbol_of(size: Any) -> Any:
    """The sympy expression of a dynamic size; None of a fixed one."""
    inner = getattr(size, "node", None)
    return None if inner is None else inner.expr
