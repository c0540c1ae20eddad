"""Models and helpers that the tests of switches share."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


@contextmanager
def quick_switching() -> Iterator[None]:
    """Threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def at_once(*works: Callable[[], Any]) -> list[Any]:
    with quick_switching(), ThreadPoolExecutor(len(works)) as pool:
        return [future.result() for future in [pool.submit(work) for work in works]]


def is_noisy(model: Any, x: Tensor) -> bool:
    with torch.no_grad():
        return not torch.equal(model(x), model(x))
