"""A converted model's forwards, watched for what no plan could see: a product with a weight that goes past its noise.

Code may reach a weight by a hook, a closure, a list, `state_dict()` or `.data`, and in a forward that does not trace,
by any function that it hands a layer to. So a forward now and then runs under a torch function mode that follows the
posteriors' means, and raises where code other than the estimators' multiplies data by one. Every forward sees whether
layers that had a posterior are gone.

A trainer's step may call `self.encoder(x)` and never the model itself. Where a layer's first forward runs in none of
its model, the modules around layers are watched too, each at its next call only.
"""

from __future__ import annotations

import sys
import threading
import warnings
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from torch import fx, nn

from .base import Variational
from .followed_means import READ_BESIDE, FollowedMeans, callers
from .kl import Ledger, variational_layers
from .overwritten_posteriors import tell_of_overwritten
from .switches import is_quiet

_COMPILED = "torch/_dynamo/eval_frame.py"  # calls what is compiled


def watch_forwards(model: nn.Module, beside: Iterable[str] = ()) -> None:
    """Watch the model's forwards, except for these layers. A graph, or a layer by itself, needs no watch."""
    alone = isinstance(model, Variational) and not any(True for _ in model.children())
    if alone or isinstance(model, fx.GraphModule):
        return
    setattr(model, READ_BESIDE, tuple(beside))
    model.register_forward_pre_hook(begin_watch)
    model.register_forward_hook(end_watch, always_call=True)


def unwatch_forwards(model: nn.Module) -> None:
    """Take `watch_forwards` back; nothing to do where it was not called."""
    for key in [key for key, hook in model._forward_pre_hooks.items() if hook is begin_watch]:
        del model._forward_pre_hooks[key]
    for key in [key for key, hook in model._forward_hooks.items() if hook is end_watch]:
        del model._forward_hooks[key]
        model._forward_hooks_always_called.pop(key, None)
    vars(model).pop(READ_BESIDE, None)


def begin_watch(model: nn.Module, args: Any) -> None:
    """The forward pre-hook of a converted model."""
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
        return
    while _RUNNING.forwards and not _runs(_RUNNING.forwards[-1].frame):
        _RUNNING.forwards.pop().end()  # Ctrl-C ended that one
    state, root = _state_of(model), _root_of_part(model)
    if state is not None:
        forward = _Forward(model, sys._getframe(1))
        _RUNNING.forwards.append(forward)
        forward.begin(state)
    elif root is not None and not _RUNNING.forwards:
        _RUNNING.forwards.append(_Forward(model, sys._getframe(1)))
        _RUNNING.forwards[-1].begin_as_part(root)


def end_watch(model: nn.Module, args: Any, output: Any) -> None:
    """The forward hook of a converted model, called after a failure too."""
    if not torch.compiler.is_compiling() and _RUNNING.forwards and _RUNNING.forwards[-1].model is model:
        forward = _RUNNING.forwards.pop()
        forward.end(finished=output is not None and model not in _PARTS)
        if _PARTS and forward.watch is not None:
            for part in [module for module in model.modules() if _PARTS.pop(module, None) is not None]:
                unwatch_forwards(part)


def notice_first_forward(layer: nn.Module, ledgers: Iterable[Ledger]) -> None:
    """Watch the modules around layers, where this one runs in no forward of its model.

    Compiled code is left alone: it would be compiled again for the hooks.
    """
    if _RUNNING.forwards or torch._C._get_tracing_state() is not None:
        return
    if any(frame.f_code.co_filename.endswith(_COMPILED) for frame in callers(sys._getframe(1))):
        return
    for root in [ledger.root for ledger in ledgers if layer in ledger.layers]:
        for part in root.modules():
            if part is not root and part not in _PARTS and _is_users(part):
                _PARTS[part] = ref(root)
                part.register_forward_pre_hook(begin_watch)
                part.register_forward_hook(end_watch, always_call=True)


class _State:
    """What is known of a model between its forwards.

    Attributes:
        places: of each variational layer when they were last looked for, all by weak references: the module that it
            stands in, its name there, and the layer.
        forwards: how many forwards there were since, by the model's mode.
    """

    def __init__(self, model: nn.Module, ledger: Ledger) -> None:
        own, modules = set(ledger.layers), model.modules()
        within = [(module, *each) for module in modules for each in module.named_children() if each[1] in own]
        self.places = [(ref(module), name, ref(layer)) for module, name, layer in within]
        self.forwards = {True: 0, False: 0}

    def is_present(self) -> bool:
        """Whether all layers stand where they stood."""
        return all(
            (module := parent()) is not None and module._modules.get(name) is layer()
            for parent, name, layer in self.places
        )

    def is_turn(self, training: bool) -> bool:
        """Whether to watch this forward: the first, second, fourth, eighth, ... of each mode."""
        self.forwards[training] += 1
        return self.forwards[training].bit_count() == 1


class _Running(threading.local):
    def __init__(self) -> None:
        self.forwards: list[_Forward] = []  # that run in this thread, the innermost last


_RUNNING = _Running()
_PARTS: WeakKeyDictionary[nn.Module, ref[nn.Module]] = WeakKeyDictionary()  # to be watched once: of which model
_STATES: WeakKeyDictionary[nn.Module, _State] = WeakKeyDictionary()


def _state_of(model: nn.Module) -> _State | None:
    """None for what is not the ledger's model: a replica that nn.DataParallel made."""
    state = _STATES.get(model)
    if state is not None and state.is_present():
        return state
    ledger = next((value for value in vars(model).values() if isinstance(value, Ledger)), None)
    if ledger is None or ledger.root is not model:
        return None
    ledger.refuse_lost()
    _STATES[model] = state = _State(model, ledger)
    return state


def _root_of_part(part: nn.Module) -> nn.Module | None:
    root = _PARTS.get(part)
    return None if root is None else root()


def _is_users(part: nn.Module) -> bool:
    """Whether it is a module of the user's that stands around layers."""
    if isinstance(part, Variational | fx.GraphModule) or type(part).__module__.startswith("torch.nn."):
        return False
    return any(isinstance(module, Variational) for module in part.modules())


def _layers(model: nn.Module, state: _State) -> Iterator[nn.Module]:
    if isinstance(model, Variational):
        yield model
    yield from (found for _, _, layer in state.places if (found := layer()) is not None)


def _hands_nested_tensors_on(model: nn.Module) -> bool:
    """Whether an encoder that is kept would give another output under a mode: torch then leaves its fused way."""
    encoders = (each for each in model.modules() if isinstance(each, nn.TransformerEncoder))
    return not torch.is_grad_enabled() and any(not each.training and each.use_nested_tensor for each in encoders)


def _runs(frame: FrameType) -> bool:
    return any(each is frame for each in callers(sys._getframe(1)))


class _Forward:
    """One forward of a model that runs, from its hooks' point of view."""

    def __init__(self, model: nn.Module, frame: FrameType) -> None:
        self.model, self.frame = model, frame
        self.watch: FollowedMeans | None = None

    def begin(self, state: _State) -> None:
        """Watch it, if it is its turn."""
        noisy = any(not is_quiet(layer) for layer in _layers(self.model, state))
        if noisy and state.is_turn(self.model.training) and not _hands_nested_tensors_on(self.model):
            tell_of_overwritten(self.model, variational_layers(self.model))
            self.watch = FollowedMeans(self.model, self.frame)
            self.watch.__enter__()  # type: ignore[no-untyped-call]

    def begin_as_part(self, root: nn.Module) -> None:
        """Watch it for all the weights of the model that it is a part of."""
        noisy = any(not is_quiet(layer) for _, layer in variational_layers(self.model))
        if noisy and not _hands_nested_tensors_on(root):
            self.watch = FollowedMeans(root, self.frame)
            self.watch.__enter__()  # type: ignore[no-untyped-call]

    def end(self, finished: bool = False) -> None:
        """The inverse; tells where a forward that finished had no part for any posterior."""
        if self.watch is None:
            return
        self.watch.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        if not finished:
            return
        kind, reached = type(self.model).__name__, [layer._reached for _, layer in variational_layers(self.model)]
        if reached and not any(reached):
            none = f"{kind}: a forward reached none of the {len(reached)} variational layers: {_NONE}"
            warnings.warn(none, stacklevel=2)
        for name, module in self.model.named_modules():
            if module not in self.watch.modules and any(True for _ in module.parameters(recurse=False)):
                warnings.warn(f"{kind}: its forward made {name!r}, a {type(module).__name__}{_MADE}", stacklevel=2)


_NONE = (
    "it has no noise. If it is not a part of the model that was meant to, its code calls layers that are not in this "
    "model (of the one that was copied, say): convert(..., inplace=True) makes no copy"
)


_MADE = ": it has no noise. Call the plain model once before it is converted"
