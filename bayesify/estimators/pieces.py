"""Elementwise work on large tensors, a piece at a time: what one operation writes, the next finds in the cache.

A fresh tensor of a weight's size costs a CPU more, in page faults, than three operations on it; one of a piece's size
is used again for the next piece.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import repeat
from typing import Any

import torch
from torch import Tensor

PIECE = 2**17  # elements for each thread


def in_pieces(*given: Any, scratch: int = 0) -> Iterator[tuple[Any, ...]]:
    """The tensors' pieces, one after the other, then so many uninitialized tensors of a piece's shape.

    The first is a tensor; others are of its shape, or numbers or 0-dim tensors, which are the same in each piece.
    Pieces are views: what is written to them is in the tensor.
    """
    first: Tensor = given[0]
    piece = PIECE * torch.get_num_threads()
    if first.numel() <= piece or not all(x.is_cpu and x.is_contiguous() for x in given if _is_large(x)):
        yield *given, *[torch.empty_like(first) for _ in range(scratch)]
        return
    cut = [torch.split(x.view(-1), piece) if _is_large(x) else repeat(x) for x in given]
    kept = [first.new_empty(piece) for _ in range(scratch)]
    for pieces in zip(*cut, strict=False):
        size = len(pieces[0])
        yield *pieces, *(buffer if size == piece else buffer[:size] for buffer in kept)


def _is_large(given: Any) -> bool:
    return isinstance(given, Tensor) and given.dim() > 0
