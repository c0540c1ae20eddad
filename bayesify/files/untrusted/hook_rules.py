"""Hooks of modules: torch's own, listed one by one, and bayesify's. A file gives a module no others."""

from __future__ import annotations

import types
import weakref
from collections import OrderedDict
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from ...errors import FileRefusedError
from ...nn import begin_watch, end_watch, hooks
from .builder import Rule, refuse_extras
from .content import NO_ALLOW, SHORT
from .global_names import words
from .nodes import Call

OWN_HOOKS: tuple[Any, ...] = (
    hooks.mark_reached, hooks.tell_examples, hooks.forget_examples, hooks.keep_unfused, begin_watch, end_watch,
)  # fmt: skip
_BOUND = words("_infer_parameters _lazy_load_hook load_hook")  # methods that lazy layers keep as their own hooks
HOOK_TABLES = words("""
    _forward_hooks _forward_hooks_with_kwargs _forward_hooks_always_called _forward_pre_hooks
    _forward_pre_hooks_with_kwargs _backward_hooks _backward_pre_hooks _state_dict_hooks _state_dict_pre_hooks
    _load_state_dict_pre_hooks _load_state_dict_post_hooks
""")
HOOK_CLASSES = words("""
    torch.nn.utils.weight_norm.WeightNorm
    torch.nn.utils.spectral_norm.SpectralNorm torch.nn.utils.spectral_norm.SpectralNormStateDictHook
    torch.nn.utils.spectral_norm.SpectralNormLoadStateDictPreHook
    torch.nn.utils.prune.L1Unstructured torch.nn.utils.prune.RandomUnstructured torch.nn.utils.prune.LnStructured
    torch.nn.utils.prune.RandomStructured torch.nn.utils.prune.CustomFromMask torch.nn.utils.prune.Identity
    torch.nn.utils.prune.PruningContainer
""")


class Hooks:
    """The hooks of one file: which may stand in a module, and under which numbers.

    torch counts hooks for each process: under the number that it had, a loaded one could be overwritten by the next
    that is registered. So each gets a new number, the same wherever the file has the old one.
    """

    def __init__(self) -> None:
        self._numbers: dict[int, int] = {}

    def number(self, old: Any) -> int:
        """The new number for an old one.

        Raises:
            FileRefusedError: it is not a number.
        """
        if type(old) is not int:
            raise FileRefusedError(f"has a hook without a number; {SHORT}")
        if old not in self._numbers:
            self._numbers[old] = RemovableHandle(OrderedDict()).id
        return self._numbers[old]

    def hook(self, value: Any, table: str) -> Any:
        """The hook itself, or what the table says of it.

        Raises:
            FileRefusedError: it is neither torch's own nor bayesify's.
        """
        if table.endswith(("_with_kwargs", "_always_called")):
            allowed = isinstance(value, bool)
        else:
            bound = isinstance(value, types.MethodType) and value.__func__.__name__ in _BOUND
            kind = f"{type(value).__module__}.{type(value).__qualname__}"
            known = any(value is hook for hook in OWN_HOOKS)
            allowed = bound or known or kind in HOOK_CLASSES or type(value) is _WrappedHook
        if not allowed:
            raise FileRefusedError(f"has the hook {str(value)[:80]}, which is not torch's own or bayesify's; refused")
        return value


def refuse_hooks_without_parts(made: nn.Module) -> None:
    """Refuse hooks that compute a weight (weight norm, spectral norm, pruning) from tensors that are not there.

    Raises:
        FileRefusedError: some are not, or a mask is not of its weight's shape.
    """
    for hook in made._forward_pre_hooks.values():
        kind = f"{type(hook).__module__}.{type(hook).__qualname__}"
        if kind not in HOOK_CLASSES:
            continue
        pruning = ".prune." in kind
        name = vars(hook).get("_tensor_name" if pruning else "name")
        ends = ("_orig", "_mask") if pruning else ("_g", "_v") if kind.endswith(".WeightNorm") else ("_orig", "_u")
        held = [made._parameters.get(f"{name}{end}", made._buffers.get(f"{name}{end}")) for end in ends]
        shapes = {getattr(part, "shape", None) for part in held}
        if None in shapes or (pruning and len(shapes) > 1):
            what = f"a {type(made).__name__} whose {str(name)[:80]} is computed of nothing"
            raise FileRefusedError(f"has {what}; {SHORT}")


def _getattr(builder: Any, node: Call) -> Any:
    """`getattr(layer, "_infer_parameters")`: the hooks of lazy layers, which are their own methods."""
    refuse_extras(node)
    owner, name = builder.args(node, 2)
    method = getattr(type(owner), name, None) if isinstance(owner, nn.Module) and name in _BOUND else None
    if not isinstance(method, types.FunctionType):
        raise FileRefusedError(f"reads the attribute {str(name)[:80]!r} of an object, {_MISUSE}")
    return types.MethodType(method, owner)


def _handle(builder: Any, node: Call) -> RemovableHandle:
    """What `register_forward_hook` returns, with (hooks, number, more hooks) as its state."""
    builder.args(node, 0)
    made: RemovableHandle = builder.keep(node, object.__new__(RemovableHandle))
    state = node.state if isinstance(node.state, tuple) and len(node.state) in (2, 3) else (None, None)
    table, number, *more = (builder.value(part) for part in state)
    tables = [table, *(more[0] or () if more else ())]
    if not all(isinstance(table, OrderedDict | None) for table in tables):
        raise FileRefusedError(f"has a handle of a hook that is nowhere; {SHORT}")
    made.hooks_dict_ref, *extra = (weakref.ref(table if table is not None else OrderedDict()) for table in tables)
    made.id, made.extra_dict_ref = builder.hooks.number(number), tuple(extra)
    return made


def _wrapped_hook(builder: Any, node: Call) -> Any:
    """torch's wrapper around a hook of `state_dict` and the like."""
    builder.args(node, 0)
    made: Any = builder.keep(node, object.__new__(_WrappedHook))
    state = builder.value(node.state)
    if not isinstance(state, dict) or not set(state) <= {"hook", "with_module", "module"}:
        raise FileRefusedError(f"has a hook that is not as torch saves it; {SHORT}")
    made.hook, made.with_module = builder.hooks.hook(state.get("hook"), "hook"), bool(state.get("with_module"))
    if made.with_module:
        if not isinstance(state.get("module"), nn.Module):
            raise FileRefusedError(f"has the hook of a module that is not there; {SHORT}")
        made.module = weakref.ref(state["module"])
    return made


_MISUSE = f"which saved models never do; {NO_ALLOW}"
_WrappedHook: Any = vars(nn.modules.module)["_WrappedHook"]

HOOK_RULES: dict[str, Rule] = {
    "builtins.getattr": _getattr,
    "torch.utils.hooks.RemovableHandle": _handle,
    "torch.nn.modules.module._WrappedHook": _wrapped_hook,
}
