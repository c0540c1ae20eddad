"""What `inspect.signature` says of converted classes: what it says of the plain ones.

Libraries ask it: transformers' Trainer keeps the columns of a data set that `model.forward` names.
"""

from __future__ import annotations

import inspect
from types import FunctionType, MappingProxyType
from typing import Any

from torch import nn

from ..errors import UsageError

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
    plainly = inspect.signature(forward)
    parameters, returned = [*plainly.parameters.values()], plainly.return_annotation
    twin.__module__, twin.__signature__ = ours.__module__, _Signature(parameters, return_annotation=returned)
    cls.forward = twin


def fx_root_refused(name: str = "this model") -> UsageError:
    """What torch.fx is told that would trace into a module that is computed whole."""
    return UsageError(
        f"torch.fx cannot trace into {name}: a variational layer, or a module that multiplies by weights itself, is a "
        "leaf, and so never the root: trace nn.Sequential(model), or a module around it"
    )


class _Signature(inspect.Signature):
    """A plain forward's, which torch.fx asks for an argument that only our code has, where our module is its root."""

    @property
    def parameters(self) -> MappingProxyType[str, inspect.Parameter]:
        """The plain forward's parameters."""
        return MappingProxyType(_Parameters(super().parameters))


class _Parameters(dict[str, inspect.Parameter]):
    def __missing__(self, name: str) -> inspect.Parameter:
        if name == "return_kl":
            raise fx_root_refused()
        raise KeyError(name)
