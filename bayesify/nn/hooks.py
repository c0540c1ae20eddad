"""Every hook that bayesify puts on a module. Saved files name them, so they stay in this module."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .switches import forget_examples_of, tell_examples_of

EXAMPLES_ALONG = "_examples_along"  # on a model: which dimension of its own inputs holds the examples


def mark_reached(module: Any, args: Any, output: Any) -> None:
    """The ledger's forward hook: marks the layer as reached. It keeps no tensor."""
    module._reached = True


def tell_examples(model: nn.Module, args: Any, kwargs: Any) -> None:
    """The forward pre-hook of a model that has folding layers."""
    dim = getattr(model, EXAMPLES_ALONG)
    tensors = (value for value in (*args, *kwargs.values()) if isinstance(value, Tensor) and value.dim() > dim)
    first = next(tensors, None)
    tell_examples_of(0 if first is None else first.shape[dim])


def forget_examples(model: nn.Module, args: Any, output: Any) -> None:
    """The forward hook of a model that has folding layers: calls after it are not of this batch."""
    forget_examples_of()


def keep_unfused(module: nn.Module, args: Any) -> None:
    """A forward pre-hook that does nothing: with any hook on it, torch's encoder layer calls its layers one by one."""
