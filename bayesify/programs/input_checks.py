"""What a program was exported for: the sizes of its inputs, and what was constant in them, checked at every call.

A graph without these checks would compute nonsense where a size that it took for fixed is another one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, fx
from torch.fx.node import has_side_effect

from ..errors import UsageError
from .batch_dimension import symbol_of

_CONSTANTS = (int, float, bool, str, type(None))


def checked(graph: fx.Graph, ranges: Mapping[Any, Any]) -> None:
    """Have the graph look at its inputs first; `ranges` has the bounds of its dynamic sizes."""
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    expected = tuple(_expected(node) for node in inputs)
    bounds = tuple((str(symbol), *_bounds(limits)) for symbol, limits in ranges.items())
    if inputs:
        with graph.inserting_after(inputs[-1]):
            graph.call_function(check_inputs, (expected, bounds, *inputs))


def _expected(node: fx.Node) -> tuple[str, Any, Any]:
    """(name, sizes, constant) of an input: a list of sizes for a tensor, a list of one for a constant, None if any."""
    value = node.meta.get("val", node)
    if isinstance(value, Tensor):
        return node.name, tuple(_size(size) for size in value.shape), None
    return node.name, None, (value,) if type(value) in _CONSTANTS else None


def _size(size: Any) -> int | str:
    symbol = symbol_of(size)
    return int(size) if symbol is None else str(symbol)


def _bounds(limits: Any) -> tuple[int | None, int | None]:
    """The bounds that torch enforces: lower ones up to 2 it does not."""
    low, high = (int(bound) if bound.is_Integer else None for bound in (limits.lower, limits.upper))
    return (low if low is not None and low > 2 else None), high


@has_side_effect
def check_inputs(expected: Any, bounds: Any, *given: Any) -> None:
    """Hold what a program is called with to what it was exported for.

    Raises:
        UsageError: it is something else.
    """
    limits, sizes = {name: (low, high) for name, low, high in bounds}, {}  # type: ignore[var-annotated]
    for (name, shape, constant), value in zip(expected, given, strict=True):
        if isinstance(value, fx.Proxy):
            continue
        if constant is not None and (type(value), value) != (type(constant[0]), constant[0]):
            raise UsageError(f"the program was exported for {name}={constant[0]!r}, and not for {value!r}")
        if shape is None:
            continue
        if not isinstance(value, Tensor):
            raise UsageError(f"{name} must be a tensor {_shown(shape)} and is {type(value).__name__}")
        fits = len(shape) == value.dim()
        for size, given_size in zip(shape, value.shape, strict=False):
            low, high = limits.get(size, (None, None))
            fits = fits and given_size == (size if isinstance(size, int) else sizes.setdefault(size, given_size))
            fits = fits and (low is None or given_size >= low) and (high is None or given_size <= high)
        if not fits:
            told = [_told(size, sizes[size], *limits.get(size, (None, None))) for size in shape if size in sizes]
            raise UsageError(
                f"{name} has shape {tuple(value.shape)}; the program was exported for {_shown(shape)}"
                f"{' with ' + ', '.join(told) if told else ''}"
            )


def _told(symbol: str, size: int, low: int | None, high: int | None) -> str:
    low = low if low is None or size < low else None
    high = high if high is None or size > high else None
    return f"{symbol} of at least {low}" if low else f"{symbol} of at most {high}" if high else f"{symbol}={size}"


def _shown(shape: Any) -> str:
    return f"({', '.join(map(str, shape))}{',' if len(shape) == 1 else ''})"
