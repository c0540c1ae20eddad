"""What both estimators do in eager mode that a compiler does by itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor

from .products import Product


def rows_together(product: Product, inputs: Sequence[Tensor]) -> list[Tensor]:
    """What torch copies to multiply it, copied once for all products, and so that no one else can write to it."""
    return [x.contiguous() if product.flattens and x.dim() > 2 else x for x in inputs]


def in_mode(formula: Callable[..., Any], function: type[torch.autograd.Function]) -> Callable[..., Any]:
    """The formula as an autograd Function, which keeps less for the backward pass; or itself where torch transforms it.

    The compiler fuses it; torch.func's transforms derive from it what a Function would have to say (and say wrongly:
    torch's forward mode over forward mode leaves terms out of a Function's second derivative); TorchScript records it.
    """
    return formula if torch.compiler.is_compiling() or transforming() else function.apply


def transforming() -> bool:
    """Whether torch.func, forward-mode differentiation or torch.jit.trace watches what is computed now."""
    return (
        torch._C._functorch.peek_interpreter_stack() is not None
        or forward_ad._current_level >= 0
        or torch.jit.is_tracing()  # type: ignore[no-untyped-call]
    )
