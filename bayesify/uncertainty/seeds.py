"""Random numbers by a seed of the caller's, the global generators left alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def seeded(model: nn.Module, seed: int | None) -> Iterator[None]:
    """The default generators of the CPU and of the model's devices start at the seed, and are as before afterwards.

    With None nothing is done.
    """
    devices = {tensor.device for tensor in (*model.parameters(), *model.buffers())}
    indices = sorted(device.index for device in devices if device.type == "cuda")
    with torch.random.fork_rng(indices, enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        yield
