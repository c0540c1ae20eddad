"""A bound on what a forward computes by itself while it is traced: a file may give it any numbers to compute with."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils import _python_dispatch
from torch.utils import _pytree as pytree

_FREE = 1 << 12  # product of an operation's sizes and numbers below which its result is not looked at first
_MOST_NUMBERS, _MOST_OPERATIONS = 1 << 26, 5_000


class NotTraceableError(Exception):
    """A forward that cannot be traced. Always caught: the caller goes on without a trace."""


class TooMuchWorkError(NotTraceableError):
    """One that would compute without end: it is not tried another way."""


_Mode: Any = _python_dispatch.TorchDispatchMode  # untyped in torch


class BoundedWork(_Mode):  # type: ignore[misc]
    """Lets operations pass on tensors that are there, until they have made too many numbers.

    What would make many is first tried on the meta device, which takes neither memory nor time.
    """

    def __init__(self) -> None:
        super().__init__()
        self.numbers = self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Do it, or refuse to."""
        kwargs = kwargs or {}
        self.operations += 1
        leaves = pytree.tree_leaves((args, kwargs))
        if prod(map(_extent, leaves)) > _FREE:
            self.numbers += _made(func, args, kwargs)
        if self.numbers > _MOST_NUMBERS or self.operations > _MOST_OPERATIONS:
            raise TooMuchWorkError("the forward computes too much besides what its input needs")
        return func(*args, **kwargs)


def _extent(leaf: Any) -> int:
    """By how much it may multiply the numbers of a result."""
    if isinstance(leaf, Tensor):
        return 1 if leaf.is_meta else max(leaf.numel(), 1)
    return max(abs(leaf), 1) if isinstance(leaf, int) else 1


def _made(func: Any, args: Any, kwargs: Any) -> int:
    """How many numbers an operation would make with memory of their own, as far as the meta device can tell."""
    if func.is_view:
        return 0
    args, kwargs = pytree.tree_map_only(Tensor, lambda tensor: tensor.to("meta"), (args, dict(kwargs)))
    if any(argument.name == "device" for argument in func._schema.arguments):
        if torch.device(kwargs.get("device") or "cpu").type == "meta":
            return 0
        kwargs["device"] = "meta"
    try:
        made = func(*args, **kwargs)
    except (RuntimeError, NotImplementedError, TypeError):
        return 0  # its size depends on the numbers, and is no more than theirs
    return sum(leaf.numel() for leaf in pytree.tree_leaves(made) if isinstance(leaf, Tensor))
