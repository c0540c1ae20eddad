"""What a model's forward really does with its layers: a census by torch.fx, and a reading of a forward's own code.

Both are hints and never the source of truth: a model that does not trace has no census, and is converted all the same.
"""

from __future__ import annotations

import copy
import dis
import inspect
import os
import random
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from types import CodeType, FrameType
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from .nn.computed import sources

_MAX_NODES = 50_000
_MAX_COPIED = 1 << 20
NOT_THE_USERS = (os.path.join(torch.__path__[0], ""), os.path.join(os.path.dirname(__file__), ""))
_INNOCENT = {"dtype", "device", "shape", "size", "dim", "ndim", "numel", "requires_grad", "grad", "is_cuda"}


@dataclass(frozen=True)
class Census:
    """Which modules one symbolic forward called, how often, in which order, and whose weights it read beside that.

    Attributes:
        calls: canonical name -> number of calls, containers too.
        order: the names by their first call.
        reads: canonical name -> `file:line` of the code that read the module's Parameter itself.
        unseen: names inside a module that was called but not traced (nn.MultiheadAttention): nothing is known of them.
    """

    calls: dict[str, int]
    order: tuple[str, ...]
    reads: dict[str, str]
    unseen: frozenset[str]

    def never_called(self, name: str) -> bool:
        """True where the forward traced and did not come by this module (in the mode, train or eval, that it is in)."""
        return name not in self.calls and name not in self.unseen


def census(model: nn.Module) -> Census | None:
    """Trace the model's forward symbolically and count; None where that fails for any reason.

    A copy without weights is traced, so that a forward that counts, logs or clamps leaves the model as it is. Forward
    hooks do not run. The user's forward itself runs, with proxies: what it prints is printed. Meanwhile no other thread
    should call a module, since torch.fx patches nn.Module for that time.
    """
    with same_randomness(), warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        for concrete in argument_choices(model):
            try:
                return _trace(without_weights(model), concrete)
            except Exception:
                # The forward is the user's: whatever it raises when it meets a proxy means only "does not trace".
                continue
    return None


class Tracer(fx.Tracer):
    """torch.fx's tracer, that stops at every layer, runs no hooks, and notes who reads a Parameter."""

    def __init__(self, root: nn.Module) -> None:
        super().__init__(param_shapes_constant=True)
        self.names: dict[int, str] = {id(module): name for name, module in root.named_modules()}
        self.calls: dict[str, int] = {}
        self.read_at: dict[str, str] = {}

    def path_of_module(self, mod: nn.Module) -> str:
        if id(mod) not in self.names:
            raise NameError("a module that is no part of the model was called")
        return self.names[id(mod)]

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        owns_weights = any(True for _ in m.parameters(recurse=False))
        layer = owns_weights and not any(True for _ in m.children())
        return layer or super().is_leaf_module(m, module_qualified_name)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        name = self.path_of_module(m)
        self.calls[name] = self.calls.get(name, 0) + 1
        if self.is_leaf_module(m, name):
            return self.create_proxy("call_module", name, args, kwargs)
        # Not the `forward` that was handed in: that one would run the user's hooks, with proxies.
        return m.forward(*args, **kwargs)

    def create_node(self, kind: str, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        if len(self.graph.nodes) >= _MAX_NODES:
            raise RuntimeError("the forward is too long to trace")
        if kind == "get_attr" and target not in self.read_at:
            self.read_at[target] = user_code(sys._getframe())
        return super().create_node(kind, target, *args, **kwargs)


def _trace(root: nn.Module, concrete: dict[str, Any]) -> Census:
    tracer = Tracer(root)
    if tracer.is_leaf_module(root, ""):
        return Census({"": 1}, ("",), {}, frozenset(name for name, _ in root.named_modules() if name))
    if "forward" in vars(root):
        raise RuntimeError("torch.fx would trace the class's forward, and the instance has its own")
    graph = tracer.trace(root, concrete)
    calls = {"": 1, **tracer.calls}
    closed = [node.target for node in graph.nodes if node.op in ("call_module", "get_attr")]
    unseen = frozenset(_names_inside(root, closed)) - calls.keys()
    return Census(calls, tuple(calls), _reads(root, tracer.read_at), unseen)


def _names_inside(root: nn.Module, targets: list[str]) -> Iterator[str]:
    """Canonical names of the modules at and below the targets that are modules (a get_attr may name a Parameter)."""
    modules = dict(root.named_modules(remove_duplicate=False))
    names = {id(module): name for name, module in root.named_modules()}
    for target in set(targets) & modules.keys():
        yield from (names[id(module)] for module in modules[target].modules())


def _reads(root: nn.Module, read_at: dict[str, str]) -> dict[str, str]:
    """Owners of the Parameters that were read. A tied Parameter has many: each of them is read."""
    places = {id(value): read_at[name] for name, value in root.named_parameters() if name in read_at}
    found: dict[str, str] = {}
    for name, module in root.named_modules():
        for value in module.parameters(recurse=False):
            if id(value) in places and not any(True for _ in module.children()):
                found.setdefault(name, places[id(value)])
    return found


def user_code(frame: FrameType | None) -> str:
    """`file:line` of the nearest caller that is neither torch nor this file (torch's own, where there is none)."""
    while frame is not None and frame.f_code.co_filename.startswith(NOT_THE_USERS):
        frame = frame.f_back
    return f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno}" if frame is not None else "torch"


def without_weights(model: nn.Module) -> nn.Module:
    """A deep copy of the model whose Parameters, and big tensors, are empty ones on meta."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        stored = chain(module._parameters.values(), module._buffers.values(), _plain_tensors(vars(module)))
        memo.update((id(value), _stand_in(value)) for value in stored if isinstance(value, torch.Tensor))
    return copy.deepcopy(model, memo)


def _plain_tensors(attributes: dict[str, Any]) -> Iterator[torch.Tensor]:
    """Tensors among a module's attributes, and in lists and dicts there: a cache's may be no leaves, or very big."""
    for value in attributes.values():
        held = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else (value,)
        yield from (each for each in held if isinstance(each, torch.Tensor))


def _stand_in(value: torch.Tensor) -> torch.Tensor:
    if isinstance(value, UninitializedParameter):
        return UninitializedParameter(requires_grad=value.requires_grad)
    if isinstance(value, UninitializedBuffer):
        return UninitializedBuffer()
    if not isinstance(value, nn.Parameter) and value.numel() <= _MAX_COPIED:
        # Real values, since forwards branch on them: `if self.step > 0`.
        return value.detach().clone()
    empty = torch.empty(value.shape, dtype=value.dtype, device="meta")
    return nn.Parameter(empty, value.requires_grad) if isinstance(value, nn.Parameter) else empty


def argument_choices(model: nn.Module) -> list[dict[str, Any]]:
    """Arguments to hold fixed, attempt by attempt: none; all that have defaults (but for the first argument)."""
    try:
        parameters = list(inspect.signature(type(model).forward).parameters.values())[1:]
    except (TypeError, ValueError):
        return [{}]
    fixed = {each.name: each.default for each in parameters[1:] if each.default is not each.empty}
    return [{}, fixed] if fixed else [{}]


@contextmanager
def same_randomness() -> Iterator[None]:
    """A forward may draw (LayerDrop asks `random` or numpy): put every generator back where it was."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()  # type: ignore[no-untyped-call]
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def called_by_code(parent: nn.Module, path: str) -> bool:
    """Whether the parent's forward, by its code, calls `self.<path>`, or hands it on.

    This needs no trace, and so covers models that do not trace. Code that reaches the layer by another way than
    `self.<path>` (a loop over `children()`, an index) is not understood, and answers False.
    """
    parts = tuple(path.split("."))
    chains = (each for code in _code_from(type(parent), "forward") for each in _self_chains(code))
    mentions = (each[len(parts) :] for each in chains if each[: len(parts)] == parts)
    return any(rest[:1] in ((), ("forward",), ("__call__",)) for rest in mentions)


def read_by_code(parent: nn.Module) -> frozenset[int]:
    """The ids of Parameters, of modules below the parent, that its forward's code reads as `self.<path>.<name>`."""
    chains = (each for code in _code_from(type(parent), "forward") for each in _self_chains(code))
    return frozenset(id(each) for chain in chains for each in _parameters_at(parent, chain))


def _parameters_at(parent: nn.Module, chain: tuple[str, ...], own: bool = False) -> Iterator[nn.Parameter]:
    """What `self.<chain>` reads of the modules below; of a module whose method it calls, what that method reads."""
    module = parent
    for at, name in enumerate(chain):
        child = module._modules.get(name)
        if isinstance(child, nn.ParameterList | nn.ParameterDict):
            yield from child.parameters(recurse=False)
            return
        if child is None:
            found = sources(module, name) if at or own else []
            if found and not _INNOCENT & set(chain[at + 1 : at + 2]):
                yield from found
            elif at and not hasattr(nn.Module, name) and not type(module).__module__.startswith("torch.nn."):
                inside = (each for code in _code_from(type(module), name) for each in _self_chains(code))
                yield from (each for chain in inside for each in _parameters_at(module, chain, own=True))
            return
        module = child


def reached_names(cls: type) -> frozenset[str]:
    """Names that the class's forward mentions, and those that the methods so named mention in turn."""
    return frozenset(name for code in _code_from(cls, "forward") for name in code.co_names)


def _code_from(cls: type, method: str) -> list[CodeType]:
    """Code of the method, of the class's methods and properties that it names, and of what is nested in those."""
    found: list[CodeType] = []
    seen, pending = {method}, [method]
    while pending:
        for code in _method_code(cls, pending.pop()):
            found.append(code)
            fresh = [each for each in code.co_names if each not in seen and not hasattr(nn.Module, each)]
            seen.update(fresh)
            pending += fresh
    return found


def _method_code(cls: type, name: str) -> Iterator[CodeType]:
    """Code of the method or property, nested functions too, and of the one that it overrides where it says super()."""
    for owner in (each for each in cls.__mro__ if name in vars(each)):
        attribute = vars(owner)[name]
        function = inspect.unwrap(getattr(attribute, "fget", None) or getattr(attribute, "__func__", attribute))
        codes = [function.__code__] if hasattr(function, "__code__") else []
        calls_super = False
        while codes:
            code = codes.pop()
            yield code
            calls_super = calls_super or "super" in code.co_names
            codes += [each for each in code.co_consts if isinstance(each, CodeType)]
        if not calls_super:
            return


@lru_cache(maxsize=4096)
def _self_chains(code: CodeType) -> frozenset[tuple[str, ...]]:
    """("attn", "qkv", "weight") for each `self.attn.qkv.weight` in the code."""
    found: set[tuple[str, ...]] = set()
    run: tuple[str, ...] | None = None
    for step in dis.get_instructions(code):
        if run is not None and step.opname in ("LOAD_ATTR", "LOAD_METHOD"):
            run = (*run, step.argval)
            continue
        found.add(run or ())
        loads = step.opname.startswith(("LOAD_FAST", "LOAD_DEREF"))
        # Newer Pythons load two locals in one step.
        last = step.argval[-1] if loads and isinstance(step.argval, tuple) else step.argval
        run = () if loads and last == "self" else None
    return frozenset(found)
