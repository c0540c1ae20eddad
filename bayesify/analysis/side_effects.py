"""Runs a user's forward without changing what the process holds."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from ..estimators.generators import borrowed


@contextmanager
def same_randomness() -> Iterator[None]:
    """Put every random generator back where it was: a forward may draw (LayerDrop asks `random` or numpy).

    The generators are the process's: where other threads draw noise too, they go on from where they are, so that no
    thread draws a number twice.
    """
    used = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    devices = range(torch.cuda.device_count() if used else 0)
    python, numpy = random.getstate(), np.random.get_state()
    with borrowed(devices) as alone:
        try:
            yield
        finally:
            if alone:
                random.setstate(python)
                np.random.set_state(numpy)
