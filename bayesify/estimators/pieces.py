"""Elementwise work on large tensors, a piece at a time: what one operation writes, the next finds in the cache.

A fresh tensor of a weight's size costs a CPU more, in page faults, than three operations on it; one of a piece's size
is used again for the next piece.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from itertools import repeat
from typing import Any

import torch
from torch import Tensor

PIECE = 2**17  # elements for each thread


def in_pieces(*given: Any, scratch: int = 0) -> Iterator[tuple[Any, ...]]:
    """The tensors' pieces, one after the other, then so many uninitialized tensors of a piece's shape.

    The first is a tensor; others are of its shape, or numbers or 0-dim tensors, which are the same in each piece.
    Pieces are views: what is written to them is in the tensor. They are flat where all tensors lie alike in memory.
    """
    first: Tensor = given[0]
    large = [isinstance(x, Tensor) and x.dim() > 0 for x in given]
    flat = _flat(given, large)
    if flat is None:
        yield *given, *[torch.empty_like(first) for _ in range(scratch)]
        return
    size = first.numel()
    piece = min(PIECE * torch.get_num_threads(), size)
    buffers = _buffers(scratch, piece, first)
    if piece == size:
        yield *flat, *buffers
        return
    cut = [torch.split(x, piece) if cuts else repeat(x) for x, cuts in zip(flat, large, strict=True)]
    for pieces in zip(*cut, strict=False):
        own = len(pieces[0])
        yield *pieces, *(buffer if own == piece else buffer[:own] for buffer in buffers)


def _flat(given: Sequence[Any], large: Sequence[bool]) -> list[Any] | None:
    """Views with one dimension, the elements of all in the same order; None where there are none, or on a GPU."""
    tensors = [x for x, cuts in zip(given, large, strict=True) if cuts]
    if not all(x.is_cpu for x in tensors):
        return None
    if all(x.is_contiguous() for x in tensors):
        return [x.view(-1) if cuts else x for x, cuts in zip(given, large, strict=True)]
    order = sorted(range(tensors[0].dim()), key=tensors[0].stride, reverse=True)
    if not all(x.permute(order).is_contiguous() for x in tensors):
        return None
    return [x.permute(order).view(-1) if cuts else x for x, cuts in zip(given, large, strict=True)]


def _buffers(count: int, size: int, like: Tensor) -> list[Tensor]:
    """So many uninitialized vectors of this size.

    Small ones are kept: given back each time, they would be fresh memory each time, and its page faults cost a CPU more
    than the arithmetic.
    """
    if size > _MOST_KEPT:
        return [like.new_empty(size) for _ in range(count)]
    kind = like.dtype, size
    if len(kept := _KEPT.parts.get(kind, [])) < count:
        with torch.inference_mode(False):  # they outlive the mode that they are first asked for in
            whole = _KEPT.whole.setdefault(like.dtype, [])
            whole += [like.new_empty(_MOST_KEPT) for _ in range(count - len(whole))]
            kept = _KEPT.parts[kind] = [buffer[:size] for buffer in whole]
    return kept[:count]


_MOST_KEPT = 2**17  # elements


class _Kept(threading.local):
    """One thread's buffers, by dtype, and their first parts, by dtype and size."""

    def __init__(self) -> None:
        self.whole: dict[torch.dtype, list[Tensor]] = {}
        self.parts: dict[tuple[torch.dtype, int], list[Tensor]] = {}


_KEPT = _Kept()
