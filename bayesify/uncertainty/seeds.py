"""Random numbers by a seed of the caller's, the global generators left alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from ..estimators.generators import borrowed, noise_seeded

_APART = 0x9E3779B9  # of the model's own random numbers from the noise, whose generator starts at the seed


@contextmanager
def seeded(model: nn.Module, seed: int | None) -> Iterator[None]:
    """Noise starts at the seed, and so do the default generators of the CPU and of the model's devices.

    These are as before afterwards. Where other threads draw noise too, they are not touched at all: then what the
    model's own code draws (dropout that was left on), and noise of compiled code, is not that of the seed. With None
    nothing is done.
    """
    if seed is None:
        yield
        return
    devices = {tensor.device for tensor in (*model.parameters(), *model.buffers())}
    with noise_seeded(seed), borrowed(sorted(device.index for device in devices if device.type == "cuda")) as alone:
        if alone:
            torch.manual_seed((seed + _APART) % 2**63)
        yield
