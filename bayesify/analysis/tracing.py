"""What torch.fx must replace for the whole process while it traces: for one thread at a time, seen by no other thread.

torch.fx's own `Tracer.trace` replaces nn.Module's `__call__` and `__getattr__` and functions in the globals of the code
that it traces, for all threads alike. Here each replacement does what the original does unless the trace itself runs
it, and all of them are taken back however the trace ends, KeyboardInterrupt included.
"""

from __future__ import annotations

import builtins
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.fx import _symbolic_trace as torch_fx

TRACING = threading.RLock()  # held from before a trace's copy of random states until these are put back
_ABSENT: Any = object()


class Here:
    """True in the thread that made it, until it is over: stands for torch.fx's flag that a trace is running."""

    def __init__(self) -> None:
        self.thread = threading.get_ident()
        self.over = False

    def __bool__(self) -> bool:
        return not self.over and threading.get_ident() == self.thread


class Replacements:
    """A journal of what was replaced. Each replacement is entered before it is made, so that `undo` knows of it."""

    def __init__(self) -> None:
        self.here = Here()
        self._journal: list[tuple[Any, str, Any, Any]] = []
        self._searched: dict[int, dict[str, Any]] = {}

    def attribute(self, owner: Any, name: str, value: Any) -> None:
        """Replace an attribute of a class or of a Python module."""
        self._journal.append((owner, name, vars(owner)[name], value))
        setattr(owner, name, value)

    def functions(self, table: dict[str, Any], ids: Iterable[int]) -> None:
        """Let functions among these globals, by id, enter a node where they are called with a proxy."""
        if id(table) in self._searched:
            return
        self._searched[id(table)] = table
        for name, value in list(table.items()):
            if not name.startswith("_") and callable(value) and id(value) in ids:
                self._wrap(table, name)

    def searched(self) -> list[dict[str, Any]]:
        """The globals of all code that was traced."""
        return [*self._searched.values()]

    def wrapped_functions(self) -> None:
        """The same for what was hidden from traces by `torch.fx.wrap`."""
        for (_, name), table in torch_fx._wrapped_fns_to_patch.copy().items():
            self._wrap(table, name)
        for cls, name in torch_fx._wrapped_methods_to_patch:
            self.attribute(cls, name, torch_fx._create_wrapped_method(cls, name))

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """Everything as it was before, for as long as this lasts."""
        present = [entry for entry in self._journal if _table(entry[0]).get(entry[1], _ABSENT) is entry[3]]
        for owner, name, before, _ in reversed(present):
            _put(owner, name, before)
        try:
            yield
        finally:
            for owner, name, _, value in present:
                _put(owner, name, value)

    def undo(self) -> None:
        """Take everything back, last first; what another tracer has replaced since stays. Can be called again."""
        self.here.over = True
        for owner, name, before, value in reversed(self._journal):
            if _table(owner).get(name) is value:
                _put(owner, name, before)

    def _wrap(self, table: dict[str, Any], name: str) -> None:
        before = table.get(name, _ABSENT)
        function = getattr(builtins, name) if before is _ABSENT else before
        if not any(owner is table and name == entered for owner, entered, *_ in self._journal):
            value = torch_fx._create_wrapped_func(function)
            self._journal.append((table, name, before, value))
            table[name] = value


def _table(owner: Any) -> Any:
    return owner if isinstance(owner, dict) else vars(owner)


def _put(owner: Any, name: str, value: Any) -> None:
    if not isinstance(owner, dict):
        setattr(owner, name, value)
    elif value is _ABSENT:
        owner.pop(name, None)
    else:
        owner[name] = value


def replacing_modules(replaced: Replacements, called: Callable[..., Any], read: Callable[..., Any]) -> None:
    """Let calls of modules, and reads of their Parameters, go to a tracer.

    Args:
        replaced: the trace's replacements.
        called: called with a module, its own `__call__`, and the arguments.
        read: called with a module, the attribute's name, and its value.
    """
    here, plain_call, plain_getattr = replaced.here, nn.Module.__call__, nn.Module.__getattr__

    def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return called(module, plain_call, args, kwargs) if here else plain_call(module, *args, **kwargs)

    def get(module: nn.Module, name: str) -> Any:
        value = plain_getattr(module, name)
        return read(name, value) if here else value

    replaced.attribute(nn.Module, "__getattr__", get)
    replaced.attribute(nn.Module, "__call__", call)
    own: Any = getattr(torch_fx, "_is_fx_tracing_tls", None)  # each thread's flag, from torch 2.14 on
    if own is None:
        replaced.attribute(torch_fx, "_is_fx_tracing_flag", here)
    else:
        own.flag = getattr(own, "flag", False)
        replaced.attribute(own, "flag", here)
