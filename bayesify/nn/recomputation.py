"""Activation checkpointing (torch.utils.checkpoint) in a user's forward: what it computes again in the backward pass.

The backward pass calls the checkpointed function a second time, when the module's forward is long over. So a rerouting
gives such a function another one to call in its place, which does the same inside the rerouting. torch keeps what it
will call on an object of its own for each region: that is the one place that tells what will run, whatever code called
`checkpoint`, and nothing of torch's is replaced for it.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import CodeType, FrameType
from typing import Any

import torch
from torch.utils.checkpoint import CheckpointFunction

from ..errors import BypassError

_REENTRANT: Any = CheckpointFunction.forward.__code__
_REENTRANT_AGAIN: Any = CheckpointFunction.backward.__code__
_PACK = "_checkpoint_hook.__init__.<locals>.pack_hook"
_CHECKPOINTING: str = CheckpointFunction.forward.__code__.co_filename


@dataclass(frozen=True)
class Region:
    """A checkpointed region that is computed now.

    Attributes:
        place: torch's object that holds the function to call again.
        name: the attribute of it that does.
        given: the arguments that the function was called with, where torch will call it with detached copies of them.
    """

    place: Any
    name: str
    given: tuple[Any, ...] = ()

    def wrap(self, owner: object, wrapped: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        """Have the function called again through what `wrapped` makes of it, once for each owner."""
        function = getattr(self.place, self.name, None)
        if function is not None and not any(known is owner for known in getattr(function, "owners", ())):
            again: Any = wrapped(function)
            again.owners = (owner, *getattr(function, "owners", ()))
            setattr(self.place, self.name, again)


def region() -> Region | None:
    """The innermost region without re-entry, where one is computed for the first time."""
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)
    pack: Any = hooks[0] if hooks else None
    if getattr(pack, "__qualname__", "") != _PACK:
        return None
    cells = dict(zip(pack.__code__.co_freevars, pack.__closure__, strict=True))
    return Region(cells["frame"].cell_contents, "recompute_fn")


def region_with_reentry(until: Any) -> Region | str | None:
    """The same where gradients are off: a region with re-entry, or the name of another autograd.Function that runs.

    Args:
        until: the code of the function whose callees count.
    """
    frame: FrameType | None = sys._getframe(1)
    functions = _functions_by_code("forward")
    while frame is not None and frame.f_code is not until:
        if frame.f_code is _REENTRANT:
            names = frame.f_locals
            return Region(names["ctx"], "run_function", tuple(names["args"]))
        if frame.f_code in functions:
            return functions[frame.f_code]
        frame = frame.f_back
    return None


def refuse_other_noise(layer: object) -> None:
    """Raise where a layer is computed again with other noise than the first time: gradients would be wrong.

    Raises:
        BypassError: `checkpoint` was called with preserve_rng_state=False, or an autograd.Function of the user's
            computes the layer in its backward.
    """
    if torch._C._current_graph_task_id() == -1:
        return
    frame: FrameType | None = sys._getframe(1)
    by_torch = False
    while frame is not None:
        code = frame.f_code
        again = code is _REENTRANT_AGAIN or (code.co_name == "recompute_fn" and code.co_filename == _CHECKPOINTING)
        if again:
            names = frame.f_locals
            kept = names["ctx"].preserve_rng_state if "ctx" in names else names["preserve_rng_state"]
            if not kept:
                raise BypassError(
                    f"checkpoint(..., preserve_rng_state=False) computes a {type(layer).__name__} again with other "
                    "noise than its output had, so that gradients would be wrong: leave preserve_rng_state at True"
                )
            by_torch = True
        frame = frame.f_back
    if not by_torch:
        _refuse_in_backward(layer)


def _refuse_in_backward(layer: object) -> None:
    """torch's own checkpointing draws the same noise again; other code that computes again is not known to."""
    frame: FrameType | None = sys._getframe(2)
    functions = _functions_by_code("backward", "vjp")
    while frame is not None:
        if frame.f_code in functions:
            raise BypassError(
                f"the backward of the autograd.Function {functions[frame.f_code]} computes a {type(layer).__name__} "
                "again, with other noise than its output had, so that gradients would be wrong: call it by "
                "torch.utils.checkpoint, which draws the same, or keep this layer by `ignore` in the policy"
            )
        frame = frame.f_back


def _functions_by_code(*methods: str) -> dict[CodeType, str]:
    """The name of each autograd.Function by the code of these methods, which torch calls from C, past Python frames."""
    functions = _below(torch.autograd.Function)
    codes = ((inspect.unwrap(getattr(function, method)), function) for function in functions for method in methods)
    return {code.__code__: function.__qualname__ for code, function in codes if hasattr(code, "__code__")}


def _below(base: type[Any]) -> Iterator[type[Any]]:
    for function in base.__subclasses__():
        yield function
        yield from _below(function)
