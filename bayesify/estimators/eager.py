"""What both estimators do in eager mode that a compiler does by itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor

from .products import Product


def rows_together(product: Product, inputs: Sequence[Tensor]) -> list[Tensor]:
    """What torch copies to multiply it, copied once for all products, and so that no one else can write to it."""
    return [x.contiguous() if product.flattens and x.dim() > 2 else x for x in inputs]


def not_a_view(tensor: Tensor) -> Tensor:
    """The tensor, such that the user may write to it: autograd lets no one write to a view that a Function made."""
    return tensor.new_empty(0).set_(tensor) if tensor._is_view() else tensor  # type: ignore[call-overload]


def plus_product_(tensor: Tensor | None, factor: Tensor | None, other: Tensor) -> Tensor | None:
    """tensor + factor·other, in its place where that is possible; None stands for a gradient that no one asked for."""
    if tensor is None or factor is None:
        return None
    if not tensor.is_contiguous() or tensor.dtype != factor.dtype:
        return tensor + factor * other
    return tensor.addcmul_(factor, other)


def gradients(
    formula: Callable[..., Tensor], tensors: Sequence[Any], needs: Sequence[bool], grad: Tensor
) -> list[Tensor | None]:
    """The formula's gradients in those of its tensors that need one, themselves differentiable."""
    differentiable = torch.is_grad_enabled()
    with torch.enable_grad():
        own = [x if x is None else x.view_as(x) for x in tensors]  # one tensor may be given twice
        output = formula(*own)
        leaves = [x for x, need in zip(own, needs, strict=True) if need and x is not None]
        found = iter(torch.autograd.grad(output, leaves, grad.to(output.dtype), create_graph=differentiable))
    return [next(found) if need else None for need in needs]


def by_formula(grad: Tensor) -> bool:
    """Whether a backward pass is to differentiate the formula: to be differentiated itself, or for many gradients."""
    functorch: Any = torch._C._functorch
    return torch.is_grad_enabled() or functorch.is_legacy_batchedtensor(grad) or functorch.is_batchedtensor(grad)


def in_mode(formula: Callable[..., Any], function: type[torch.autograd.Function]) -> Callable[..., Any]:
    """The formula as an autograd Function, which keeps less for the backward pass; or itself where torch transforms it.

    The compiler fuses it; torch.func's transforms derive from it what a Function would have to say (and say wrongly:
    torch's forward mode over forward mode leaves terms out of a Function's second derivative); TorchScript records it.
    """
    return formula if torch.compiler.is_compiling() or transforming() else caller_of(function)


def caller_of(function: type[torch.autograd.Function]) -> Callable[..., Any]:
    """What calls an autograd Function in eager code that torch does not transform.

    Where gradients are off, nothing is kept: its `forward` is called with None for its context.
    """
    if not torch.is_grad_enabled():
        return partial(function.forward, None)
    # what Function.apply does beside it is for those transforms, and takes a tenth of a small layer's time
    base: Any = super(torch.autograd.Function, function)
    return base.apply  # type: ignore[no-any-return]


def transforming() -> bool:
    """Whether torch.func, forward-mode differentiation, torch.jit.trace or a dispatch mode watches what is computed.

    Such a mode (selective checkpointing) may keep what an operator gave, and no one may write to that.
    """
    return (
        torch._C._functorch.peek_interpreter_stack() is not None
        or forward_ad._current_level >= 0
        or torch._C._len_torch_dispatch_stack() > 0
        or recorded()
    )


def recorded() -> bool:
    """Whether torch.jit.trace records what is computed now."""
    return torch._C._get_tracing_state() is not None
