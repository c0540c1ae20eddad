"""Runs a user's forward without changing what the process holds."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def same_randomness() -> Iterator[None]:
    """Put every random generator back where it was: a forward may draw (LayerDrop asks `random` or numpy).

    Not where other threads may draw meanwhile, which would draw the same numbers once more.
    """
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()  # type: ignore[no-untyped-call]
    alone = threading.active_count() == 1
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda = [torch.cuda.get_rng_state(device) for device in devices]
    try:
        yield
    finally:
        if alone and threading.active_count() == 1:
            random.setstate(python)
            np.random.set_state(numpy)
            torch.set_rng_state(cpu)
            for device, state in zip(devices, cuda, strict=True):
                torch.cuda.set_rng_state(state, device)
