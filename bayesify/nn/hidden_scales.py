"""Scales that are hidden from a forward that goes over Parameters, as for a penalty: it finds the plain model's.

Whoever calls `parameters()` from outside of a forward, such as an optimizer, finds all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import nn

from .posterior_tensors import added_names
from .switches import in_hiding_forward

Members = Iterable[tuple[str, Any]]


class HidesScales(nn.Module):
    """A module that has layers with posteriors, itself included: in its `named_parameters` and `named_buffers`."""

    def _named_members(self, get_members_fn: Callable[[nn.Module], Members], *args: Any, **kwargs: Any) -> Any:
        plain: Any = super()._named_members
        if not in_hiding_forward():
            return plain(get_members_fn, *args, **kwargs)
        return plain(lambda module: _plain_members(module, get_members_fn(module)), *args, **kwargs)


def _plain_members(module: nn.Module, members: Members) -> Iterator[tuple[str, Any]]:
    added = added_names(module) if "_settings" in vars(module) else ()
    return ((name, value) for name, value in members if name not in added)
