"""What both estimators do in eager mode that a compiler does by itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .products import Product


def rows_together(product: Product, inputs: Sequence[Tensor]) -> list[Tensor]:
    """What torch copies to multiply it, copied once for all products, and so that no one else can write to it."""
    return [x.contiguous() if product.flattens and x.dim() > 2 else x for x in inputs]


def in_mode(formula: Callable[..., Any], function: type[torch.autograd.Function]) -> Callable[..., Any]:
    return formula if torch.compiler.is_compiling() else function.apply
