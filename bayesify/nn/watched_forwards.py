"""A converted model's forwards, watched for what no plan could see: a product with a weight that goes past its noise.

Code may reach a weight by a hook, a closure, a list, `state_dict()` or `.data`, and in a forward that does not trace,
by any function that it hands a layer to. So a forward now and then runs under a torch function mode that follows the
posteriors' means, and raises where code other than the estimators' multiplies data by one. Every forward sees whether
layers that had a posterior are gone.
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
from torch import Tensor, fx, nn
from torch.nn.utils.parametrize import ParametrizationList
from torch.overrides import TorchFunctionMode

from ..errors import BypassError
from .base import Variational
from .kl import Ledger, variational_layers
from .overwritten_posteriors import tell_of_overwritten
from .parametrized_weights import sources
from .switches import is_quiet
from .torch_functions import BODIES, MULTIPLICATIONS, Role, role
from .user_code import OURS, user_code

READ_BESIDE = "_read_beside"  # on a model: names of layers of which the plan says that code takes their weight beside

_RECURRENT = frozenset((torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu))
# files of ours below which the forwards of the user's run
_AROUND_USERS = tuple(f"{OURS}nn/{name}.py" for name in ("rerouting", "product_rerouting", "switches"))


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
    state = _state_of(model)
    if state is not None:
        forward = _Forward(model, sys._getframe(1))
        _RUNNING.forwards.append(forward)
        forward.begin(state)


def end_watch(model: nn.Module, args: Any, output: Any) -> None:
    """The forward hook of a converted model, called after a failure too."""
    if not torch.compiler.is_compiling() and _RUNNING.forwards and _RUNNING.forwards[-1].model is model:
        _RUNNING.forwards.pop().end(finished=output is not None)


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


def _layers(model: nn.Module, state: _State) -> Iterator[nn.Module]:
    if isinstance(model, Variational):
        yield model
    yield from (found for _, _, layer in state.places if (found := layer()) is not None)


def _hands_nested_tensors_on(model: nn.Module) -> bool:
    """Whether an encoder that is kept would give another output under a mode: torch then leaves its fused way."""
    encoders = (each for each in model.modules() if isinstance(each, nn.TransformerEncoder))
    return not torch.is_grad_enabled() and any(not each.training and each.use_nested_tensor for each in encoders)


def _runs(frame: FrameType) -> bool:
    return any(each is frame for each in _callers(sys._getframe(1)))


def _callers(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


class _Forward:
    """One forward of a model that runs, from its hooks' point of view."""

    def __init__(self, model: nn.Module, frame: FrameType) -> None:
        self.model, self.frame = model, frame
        self.watch: _Watch | None = None

    def begin(self, state: _State) -> None:
        """Watch it, if it is its turn."""
        noisy = any(not is_quiet(layer) for layer in _layers(self.model, state))
        if noisy and state.is_turn(self.model.training) and not _hands_nested_tensors_on(self.model):
            tell_of_overwritten(self.model, variational_layers(self.model))
            self.watch = _Watch(self.model, self.frame)
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


class _Watch(TorchFunctionMode):
    """Follows the means of a model, and what is computed from them alone, through one forward."""

    def __init__(self, model: nn.Module, frame: FrameType) -> None:
        super().__init__()
        self.frame, self.known = frame, dict[int, tuple[Tensor, str]]()
        self.constants = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
        beside, modules = vars(model).get(READ_BESIDE, ()), list(model.named_modules())
        self.modules = {module for _, module in modules}
        plain = {id(own) for _, module in modules if not _is_followed(module) for own in module._parameters.values()}
        for name, layer in modules:
            if isinstance(layer, Variational) and name not in beside and not is_quiet(layer):
                means = [mean for own in layer.means() for mean in sources(layer, own)]
                self.known.update((id(mean), (mean, name)) for mean in means if id(mean) not in plain)
        # by state_dict() and by `data` a forward gets other tensors over the same memory
        self.memory = {at: name for mean, name in self.known.values() if (at := _memory(mean)) != (0, 0)}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.compiler.is_compiling():
            return func(*args, **kwargs)
        tensors = [each for each in _flat([*args, *kwargs.values()]) if isinstance(each, Tensor)]
        known = [each for each in tensors if self._knows(each)]
        data = [each for each in tensors if id(each) not in self.known and id(each) not in self.constants]
        if (data and not known) or not tensors or not self._is_users():
            return func(*args, **kwargs)
        if data and (func in MULTIPLICATIONS or func in BODIES or func in _RECURRENT):
            name = self.known[id(known[0])][1]
            raise BypassError(
                f"`{func.__name__}` at {user_code(sys._getframe(1))} multiplies by the weight of the "
                f"variational layer {name!r} past its noise: call the layer there, or keep it by `ignore` in the policy"
            )
        output = func(*args, **kwargs)
        outputs = [each for each in _flat([output]) if isinstance(each, Tensor) and id(each) not in self.constants]
        if not data and not known:
            self.constants.update((id(each), each) for each in outputs)
        elif not data and role(func, args, kwargs, known[0]) not in (Role.FORM, Role.ROWS):
            self.known.update((id(each), (each, self.known[id(known[0])][1])) for each in outputs)
        return output

    def _knows(self, tensor: Tensor) -> bool:
        name = None if id(tensor) in self.known or id(tensor) in self.constants else self.memory.get(_memory(tensor))
        if name is not None:
            self.known[id(tensor)] = tensor, name
        return id(tensor) in self.known

    def _is_users(self) -> bool:
        """Whether code of the user's calls, and not what a variational layer computes, or a graph that was compiled."""
        for frame in _callers(sys._getframe(2)):
            place = frame.f_code.co_filename
            if frame is self.frame:
                return True
            ours = place.startswith(OURS) and place not in _AROUND_USERS
            if ours or place.startswith("<eval_with_key>") or "extern_kernels" in frame.f_globals:
                return False
        return False


def _is_followed(module: nn.Module) -> bool:
    """Whether what multiplies by its Parameters should have their noise, or is asked about them first."""
    return isinstance(module, Variational | ParametrizationList | nn.Embedding)


def _memory(tensor: Tensor) -> tuple[int, int]:
    """Where the tensor's numbers are, where it alone has them; (0, 0) where they lie among others or nowhere."""
    if type(tensor) not in (Tensor, nn.Parameter) or tensor.layout is not torch.strided or tensor.is_meta:
        return 0, 0
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return 0, 0
    storage = tensor.untyped_storage()
    whole = storage.nbytes() == tensor.numel() * tensor.element_size()
    return (storage.data_ptr(), storage.nbytes()) if whole else (0, 0)


def _flat(values: list[Any]) -> list[Any]:
    return [part for value in values for part in (value if isinstance(value, list | tuple) else [value])]
