"""Flipout by local reparameterization, in predictions: where the law of each example by itself is all that counts.

The outputs of a Linear for one vector x are sums over different weights, so that under either estimator they are normal
and independent: N(x·mean, x²·std²). Local reparameterization draws them in the place of the weights. Rows are
independent then; under Flipout they are uncorrelated, and share |ΔW|.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

from ..estimators.products import LinearProduct, Product
from .settings import Settings

_ALONE: ContextVar[bool] = ContextVar("bayesify_examples_alone", default=False)


@contextmanager
def examples_alone() -> Iterator[None]:
    """Inside, no one compares the examples of a batch, in this thread or task."""
    token = _ALONE.set(True)
    try:
        yield
    finally:
        _ALONE.reset(token)


def lrt_has_its_law(settings: Settings, product: Product, x: Tensor, batch_dim: int) -> bool:
    """Whether that is so now, and each row of x an example of its own."""
    if torch.compiler.is_compiling() or not _ALONE.get():
        return False
    rows = type(product) is LinearProduct and x.dim() == 2 and batch_dim == 0
    return rows and settings.rows <= 1 and settings.signs == "example"
