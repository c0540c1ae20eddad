"""What `inspect.signature` says of converted classes: what it says of the plain ones.

Libraries ask it: transformers' Trainer keeps the columns of a data set that `model.forward` names.
"""

from __future__ import annotations

import inspect
from types import FunctionType
from typing import Any

from torch import nn

_OURS = __package__


def keep_signatures(cls: Any) -> None:
    """Give a class, and its forward, the signatures of the plain class that it stands before."""
    plain = [base for base in cls.__mro__ if not f"{base.__module__}.".startswith(f"{_OURS}.")]
    if plain[0].__module__.startswith("torch.nn.modules.") and plain[0] is not nn.Module:
        cls.__signature__ = inspect.signature(plain[0])
    forward: Any = next((vars(base)["forward"] for base in plain if "forward" in vars(base)), nn.Module.forward)
    ours = cls.forward
    if forward is nn.Module.forward or ours is forward or not isinstance(ours, FunctionType):
        return
    # the same code, with a signature of this class's own
    twin: Any = FunctionType(ours.__code__, ours.__globals__, ours.__name__, ours.__defaults__, ours.__closure__)
    twin.__kwdefaults__, twin.__qualname__, twin.__doc__ = ours.__kwdefaults__, ours.__qualname__, ours.__doc__
    twin.__module__, twin.__signature__ = ours.__module__, inspect.signature(forward)
    cls.forward = twin
