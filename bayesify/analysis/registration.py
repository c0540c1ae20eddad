"""Support for layer classes of the user's own."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from ..errors import UsageError
from ..nn.registry import enter, enter_weights, plain_classes, variants_like
from .bytecode import calls_super_forward


def register(
    cls: type[nn.Module], like: type[nn.Module] = nn.Linear, *, weights: Sequence[str] = ()
) -> type[nn.Module]:
    """Support a layer class of one's own, under both methods; most classes that multiply by Parameters need no call.

    A subclass of `like` whose forward is `like`'s, or calls it by `super()`, becomes what `like` becomes.

    With `weights`, the names of Parameters, it may be any class, also one whose forward torch.fx cannot trace. The
    forward may only multiply by them in torch's functions (F.linear, matmul, einsum, F.conv2d, ...): once converted, it
    raises where it does anything else with them.

    Returns `cls`, so that it also decorates. Call it before converting, and before loading what was converted.

    Raises:
        UsageError: `like` has no variants, `cls` is not a subclass of it, or its forward reads the weight itself.
    """
    if weights:
        enter_weights(cls, weights)
        return cls
    if like not in plain_classes():
        raise UsageError(f"like={like.__name__} has no variational variants: choose one such as nn.Linear, nn.Conv2d")
    if not issubclass(cls, like):
        raise UsageError(f"{cls.__name__} is not a subclass of {like.__name__}, and cannot be registered like it")
    if cls is not like and not forwards_to(cls, like):
        raise UsageError(
            f"{cls.__name__}.forward does not call super().forward, or reads the weight too: noise would bypass it. "
            "If it only multiplies by its weight, it converts without being registered"
        )
    if cls not in plain_classes():
        enter(cls, variants_like(cls, like))
    return cls


def forwards_to(cls: type[nn.Module], like: type[nn.Module]) -> bool:
    """Whether every forward between `cls` and `like` reaches the weight through `super().forward` only."""
    between = cls.__mro__[: cls.__mro__.index(like)]
    forwards = [base.__dict__["forward"] for base in between if "forward" in base.__dict__]
    helpers = any("_conv_forward" in base.__dict__ for base in between)
    return not helpers and all(calls_super_forward(forward) for forward in forwards)
