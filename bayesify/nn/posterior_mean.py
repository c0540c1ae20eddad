"""A model without noise, for as long as a block lasts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from .kl import layers_of
from .switches import MEAN, switched


@contextmanager
def posterior_mean(model: nn.Module) -> Iterator[None]:
    """No noise inside: every layer computes with its posterior mean, as the model that was converted did.

    This holds for the thread or asyncio task that opened the block. Others that use the model have noise meanwhile, and
    so has a copy or a file of the model that is made inside.

    Raises:
        NotVariationalError: the model has no variational layer.
    """
    with switched(dict.fromkeys(layers_of(model), MEAN)):
        yield
