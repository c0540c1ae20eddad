"""Elementwise work on large tensors, a piece at a time: what one operation writes, the next finds in the cache.

A fresh tensor of a weight's size costs a CPU more, in page faults, than three operations on it; one of a piece's size
is used again for the next piece.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

PIECE = 2**17  # elements for each thread


def in_pieces(*given: Any, scratch: int = 0) -> Iterable[tuple[Any, ...]]:
    """The tensors' pieces, one after the other, then so many uninitialized tensors of a piece's shape.

    The first is a tensor; others are of its shape, or numbers or 0-dim tensors, which are the same in each piece.
    Pieces are views: what is written to them is in the tensor. They are flat where all tensors lie alike in memory.
    Uninitialized ones are the same at the next call in this thread: only one loop over pieces may run there at a time.
    """
    flat = []
    for x in given:
        if _is_large(x):
            if not (x.is_cpu and x.is_contiguous()):
                return _in_pieces_of_any(given, scratch)
            x = x.view(-1)
        flat.append(x)
    return _in_pieces_of_flat(flat, scratch)


def _is_large(given: Any) -> bool:
    return isinstance(given, Tensor) and given.dim() > 0


def _in_pieces_of_any(given: Sequence[Any], scratch: int) -> Iterable[tuple[Any, ...]]:
    tensors = [x for x in given if _is_large(x)]
    order = sorted(range(tensors[0].dim()), key=tensors[0].stride, reverse=True)
    if all(x.is_cpu and x.permute(order).is_contiguous() for x in tensors):
        return _in_pieces_of_flat([x.permute(order).view(-1) if _is_large(x) else x for x in given], scratch)
    return [(*given, *[torch.empty_like(tensors[0]) for _ in range(scratch)])]


def _in_pieces_of_flat(given: Sequence[Any], scratch: int) -> Iterable[tuple[Any, ...]]:
    size = len(given[0])
    piece = min(PIECE * torch.get_num_threads(), size)
    buffers = _buffers(scratch, piece, given[0])
    if piece == size:
        return [(*given, *buffers)]
    ends = [buffer[: size % piece] for buffer in buffers] if size % piece else buffers
    whole = size // piece
    cut = [torch.split(x, piece) if _is_large(x) else [x] * (whole + 1) for x in given]
    return [(*pieces, *(buffers if at < whole else ends)) for at, pieces in enumerate(zip(*cut, strict=False))]


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
