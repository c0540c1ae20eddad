"""Modules that are computed whole: leaves to torch.fx, nothing for TorchScript, called past the ledger's own hook."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn
from torch.nn.modules.module import _has_any_global_hook

from ..errors import UsageError
from .hooks import mark_reached
from .switches import Switchable

_Proxy = fx.Proxy


class LeafModule(Switchable):
    """A module whose forward marks it as reached, and is computed whole."""

    def _call_impl(self, *args: Any, **kwargs: Any) -> Any:
        for value in (*args, *kwargs.values()) if kwargs else args:
            if isinstance(value, _Proxy):  # a trace goes past the layer as past torch's own, hooks included
                return value.tracer.create_proxy("call_module", _path(value.tracer, self), args, kwargs)
        if _has_no_other_hook(self):
            return self.forward(*args, **kwargs)
        return super()._call_impl(*args, **kwargs)  # type: ignore[no-untyped-call]

    def __prepare_scriptable__(self) -> nn.Module:
        """What torch.jit.script asks each module for.

        Raises:
            UsageError: always.
        """
        raise UsageError(
            f"torch.jit.script cannot compile a {type(self).__name__}: use torch.jit.trace(model, x), which keeps the "
            "noise, or torch.jit.script(bayesify.revert(model))"
        )


def _has_no_other_hook(module: nn.Module) -> bool:
    """Whether a call is no more than the forward: the ledger's hook marks once more what the forward marks.

    It is there for code that asks whether a layer has hooks, as torch's encoder layer does; to call it takes a small
    layer a tenth of its time.
    """
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
        return False
    if _has_any_global_hook():  # type: ignore[no-untyped-call]
        return False
    hooks = module._forward_hooks
    others = module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    return len(hooks) == 1 and not others and mark_reached in hooks.values()


def _path(tracer: Any, module: nn.Module) -> str:
    path: str = tracer.path_of_module(module)
    return path
