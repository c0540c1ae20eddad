"""What a caller has switched for a while: layers at their means, draws that are held, examples of a running forward.

A switch belongs to the thread or asyncio task that asked for it: it stands in a context variable, keyed by layer, and
never on the layer. So no other caller sees it, and no copy or file of the model can keep it.

Dynamo cannot trace a context variable. It does trace a property that is implemented in C: it takes the value once, and
reads the property again, in the caller's own context, before every call of the compiled code.
`dict.__getitem__` is implemented in C and calls `__missing__`, which may be Python: `_Asked` stands on that.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ..errors import UsageError
from .recomputation import refuse_other_noise
from .replaced_layers import is_suspected

MEAN = "mean"  # what a layer computes with inside `posterior_mean`

_Ways = Mapping[nn.Module, Any]
_Draws = tuple[tuple[nn.Module, Mapping[str, Tensor]], ...]
_SWITCHED: ContextVar[tuple[_Ways, ...]] = ContextVar("bayesify_switched", default=())
_IN_BACKWARD, _LAST = "bayesify_switched", "bayesify_last_examples"  # in torch's own thread-local storage
_backward = torch._C._current_graph_task_id  # -1 outside of backward passes


class _Forward(threading.local):
    """What belongs to the forward that runs in this thread, which it never leaves.

    Lists, since Dynamo carries out what compiled code does to a list, and drops what it assigns to a `local`.
    """

    def __init__(self) -> None:
        self.told: list[int] = []  # of the models whose forwards run, the innermost last
        self.draws: list[_Draws] = [()]
        self.hiding: list[None] = []  # of forwards that go over Parameters, one for each that runs


_FORWARD = _Forward()


@contextmanager
def switched(ways: _Ways) -> Iterator[None]:
    """Have each of these layers compute with what stands beside it, for this thread or task, until the block ends.

    What stands beside a layer is `MEAN`, or another object that its forward knows what to do with. An inner block
    takes precedence over an outer one; blocks may end in any order.
    """
    own: _Ways = WeakKeyDictionary(ways)  # a context can outlive the model: a task keeps a copy of it
    _set((*_SWITCHED.get(), own))
    try:
        yield
    finally:
        _set(tuple(other for other in _SWITCHED.get() if other is not own))


def way_of(layer: nn.Module) -> Any:
    """What the layer computes with in place of fresh noise, in this thread or task: None where nothing is switched."""
    if torch.compiler.is_compiling():
        return layer._way if _NOW.any else None  # one guard where nothing is switched, and not one for each layer
    return _way_of(layer)


def is_quiet(layer: nn.Module) -> bool:
    """Whether the layer computes with its posterior mean, in this thread or task."""
    return way_of(layer) is MEAN


def anything_switched() -> bool:
    """Whether some layer may have to compute with something else than fresh noise, in this thread's eager code."""
    return bool(_SWITCHED.get() or _FORWARD.draws[0] or _backward() != -1)


def in_backward() -> bool:
    """Whether a backward pass runs in this thread."""
    return _backward() != -1


def tell_examples_of(examples: int) -> None:
    """Note, at the start of a model's forward, how many examples its inputs have; -1 where that is not known."""
    _FORWARD.told.append(examples)


def forget_examples_of() -> None:
    """Take back the last `tell_examples_of`."""
    if _FORWARD.told:
        _FORWARD.told.pop()


def examples_of_forward() -> int:
    """How many examples the forward that runs in this thread has; 0 where none runs, -1 where that is not known."""
    return _FORWARD.told[-1] if _FORWARD.told else 0


def set_draws_of_forward(draws: _Draws) -> None:
    """Have the forward that runs in this thread compute with these draws: (layer, name of a weight -> draw)."""
    _FORWARD.draws[0] = draws


def draws_of_forward() -> _Draws:
    """What `set_draws_of_forward` set in this thread."""
    return _FORWARD.draws[0]


def hide_scales() -> None:
    """Note, at the start of a forward, that code in it is not to find scales among Parameters."""
    _FORWARD.hiding.append(None)


def show_scales() -> None:
    """Take back one `hide_scales`."""
    _FORWARD.hiding.pop()


def in_hiding_forward() -> bool:
    """Whether a forward runs in this thread that called `hide_scales`."""
    return bool(_FORWARD.hiding)


def remember_examples(layer: nn.Module, rows: int, examples: int) -> None:
    """Note how many examples so many rows of the layer's input were: checkpointing runs parts of a forward again."""
    _remembered()[layer] = (rows, examples)


def last_examples(layer: nn.Module) -> tuple[int, int]:
    """(rows, examples) as this thread remembered them last: (0, 0) where it did not."""
    if torch.compiler.is_compiling():
        last: tuple[int, int] = layer._last_examples  # type: ignore[assignment]
        return last
    return _last_examples(layer)


class _Asked(dict[Any, Any]):
    """Calls a function of `self` by `__getitem__`, which is implemented in C."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        super().__init__()
        self.function = function

    def __missing__(self, asked: Any) -> Any:
        return self.function(asked)


def _traceable(function: Callable[[Any], Any]) -> Any:
    """A property that Dynamo takes for one that is implemented in C."""
    return property(_Asked(function).__getitem__)


def _way_of(layer: nn.Module) -> Any:
    switched = _SWITCHED.get()
    if not switched and _backward() == -1:  # so it is nearly always, and this is asked at every forward of every layer
        return None
    for ways in reversed(switched or _of_caller()):
        way = ways.get(layer)
        if way is not None:
            return way
    refuse_other_noise(layer)
    return None


def _of_caller() -> tuple[_Ways, ...]:
    """What the caller of a backward pass switched: on GPUs, checkpointing computes again in threads of autograd's."""
    if _backward() == -1 or not torch._C._is_key_in_tls(_IN_BACKWARD):
        return ()
    thread, ways = torch._C._get_obj_in_tls(_IN_BACKWARD)
    # in the caller's own thread the context has the answer, which is that of the task
    return () if thread == threading.get_ident() else ways


def _set(ways: tuple[_Ways, ...]) -> None:
    _SWITCHED.set(ways)
    torch._C._stash_obj_in_tls(_IN_BACKWARD, (threading.get_ident(), ways))


def _remembered() -> WeakKeyDictionary[nn.Module, tuple[int, int]]:
    """One for each thread; autograd's threads see that of the thread which called them."""
    if not torch._C._is_key_in_tls(_LAST):
        torch._C._stash_obj_in_tls(_LAST, WeakKeyDictionary())
    remembered: WeakKeyDictionary[nn.Module, tuple[int, int]] = torch._C._get_obj_in_tls(_LAST)
    return remembered


def _last_examples(layer: nn.Module) -> tuple[int, int]:
    return _remembered().get(layer, (0, 0))


class _Now:
    """Whether anything is switched now: a global object, so that Dynamo guards it once."""

    any = _traceable(lambda _: bool(_SWITCHED.get() or _of_caller()))


_NOW = _Now()


class Switchable(nn.Module):
    """A module that may be switched."""

    _way = _traceable(_way_of)
    _last_examples = _traceable(_last_examples)
    _suspected = _traceable(is_suspected)

    def _replicate_for_data_parallel(self) -> Any:
        if way_of(self) is not None:
            raise UsageError(
                "nn.DataParallel runs copies of the model in threads of its own, where posterior_mean and draw do not "
                "hold: call the model that it wraps, or use DistributedDataParallel"
            )
        return super()._replicate_for_data_parallel()  # type: ignore[no-untyped-call]


def unrouted() -> AbstractContextManager[Any]:
    """What a layer computes of its own weight is not a product for a module around it to answer: see `rerouting`."""
    enabled = torch._C._is_torch_function_mode_enabled()
    return torch._C.DisableTorchFunction() if enabled else nullcontext()
