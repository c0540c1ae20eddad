"""One module's forward, traced by torch.fx with its children opaque: to see what it does with weights.

A branch on data is taken one way in one trace and the other way in a second: what is wanted is each use of a weight,
not a graph to run.
"""

from __future__ import annotations

import operator
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from typing import Any

import torch
from torch import fx, nn
from torch.fx.proxy import ParameterProxy

from .graph import NOT_THE_USERS, Tracer, argument_choices, same_randomness, user_code, without_weights

_ATTEMPTS = 12
_MOST_BRANCHES = 500


def traced_alone(module: nn.Module) -> tuple[list[fx.Graph], str]:
    """Graphs of this one module's forward, on both sides of its branches; or none, and what stopped the trace."""
    failure = ""
    with same_randomness(), warnings.catch_warnings(), torch.no_grad(), _nothing_wrapped():
        warnings.simplefilter("ignore")
        for concrete, told in product(reversed(argument_choices(module)), (False, True)):
            outcomes = [_explored(module, concrete, default, told) for default in (False, True)]
            graphs = [each for each in outcomes if isinstance(each, fx.Graph)]
            if graphs:
                return graphs, ""
            failure = failure or str(outcomes[0])
    return [], failure


def _explored(module: nn.Module, concrete: dict[str, Any], default: bool, told: bool) -> fx.Graph | str:
    """The first graph that traces: branches take the default, and the last one the other way after a failure."""
    choices: list[bool] = []
    failure = ""
    for _ in range(_ATTEMPTS):
        try:
            copied = without_weights(module)
        except Exception as error:
            return f"it cannot be copied: {_said(error)}"
        tracer = _Alone(copied, choices, default, told)
        try:
            return tracer.trace(copied, concrete)
        except Exception as error:
            failure = failure or f"{_raised_at(error)} {_said(error)}"
        choices = tracer.taken
        while choices and choices[-1] is not default:
            choices.pop()
        if not choices:
            break
        choices[-1] = not default
    return failure


_TOLD = {"device": torch.device("cpu"), "dtype": torch.float32}


class _Alone(Tracer):
    """Stops at every module but the root, and notes where in the user's code each node was made.

    `told`: sizes, dtypes and devices are some instead of unknown, for code that makes tensors of them.
    """

    def __init__(self, root: nn.Module, choices: list[bool], default: bool, told: bool) -> None:
        super().__init__(root)
        self.told = self.proxy_buffer_attributes = told  # a buffer may be viewed by sizes that are not its own
        self.top, self.choices, self.default = root, choices, default
        self.taken: list[bool] = []
        self.parameters = dict(root.named_parameters())

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return m is not self.top

    def create_node(self, kind: str, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(kind, target, *args, **kwargs)
        node.meta["code"] = user_code(sys._getframe())
        node.meta["parameter"] = kind == "get_attr" and target in self.parameters
        return node

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Size(node, self) if self.told and _is_size(node) else _Proxy(node, self)

    def create_proxy(self, kind: str, target: Any, *args: Any, proxy_factory_fn: Any = None, **kwargs: Any) -> fx.Proxy:
        if proxy_factory_fn is not None:  # a Parameter or a buffer
            value = self.parameters.get(target)
            weight = None if value is None else lambda node: _Weight(self, node, target, value)
            kwargs["proxy_factory_fn"] = weight or self.proxy
        return super().create_proxy(kind, target, *args, **kwargs)

    def to_bool(self, obj: fx.Proxy) -> bool:
        if len(self.taken) > _MOST_BRANCHES:
            raise RuntimeError("it branches too often to trace")
        at = len(self.taken)
        self.taken.append(self.choices[at] if at < len(self.choices) else self.default)
        return self.taken[-1]

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        given: Any = obj
        index: Any = obj.node.args[1] if obj.node.target is operator.getitem else None
        known = isinstance(index, slice) and isinstance(index.stop, int) and not index.start and index.stop > 0
        return iter([given[at] for at in range(index.stop if known else 1)])

    def keys(self, obj: fx.Proxy) -> Any:
        return ()


class _Proxy(fx.Proxy):
    def __getattr__(self, name: str) -> Any:
        tracer: Any = self.tracer
        return _TOLD[name] if name in _TOLD and tracer.told else super().__getattr__(name)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, key, value), {})

    def __len__(self) -> int:
        return 1  # as many as `iter` gives


class _Size(_Proxy, int):  # type: ignore[misc]
    """A number that is told by the form of a tensor: functions that make tensors, and loops, take it for 2."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    def __new__(cls, node: fx.Node, tracer: Any) -> _Size:
        return int.__new__(cls, 2)  # a loop from 1 runs once

    __index__, __int__, __float__ = int.__index__, int.__int__, int.__float__
    __hash__ = fx.Proxy.__hash__


def _is_size(node: fx.Node) -> bool:
    if node.target is operator.getitem:
        return _is_shape(node.args[0]) and not isinstance(node.args[1], slice)
    if node.target is getattr:
        return node.args[1] == "ndim"
    asked = (node.target == "size" and not _is_shape(node)) or node.target in ("dim", "numel")
    counted = node.op == "call_function" and getattr(node.target, "__module__", "") == "_operator"
    inputs = node.all_input_nodes
    return (node.op == "call_method" and asked) or (counted and bool(inputs) and all(map(_is_size, inputs)))


def _is_shape(node: Any) -> bool:
    if node.target is operator.getitem:
        return _is_shape(node.args[0]) and isinstance(node.args[1], slice)
    of_tensor = node.target is getattr and node.args[1] == "shape"
    return of_tensor or (node.target == "size" and len(node.args) + len(node.kwargs) == 1)


class _Weight(ParameterProxy):
    def size(self, dim: int | None = None) -> Any:
        return self.shape if dim is None else self.shape[dim]

    def __len__(self) -> int:
        return int(self.shape[0])

    def __setitem__(self, key: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, key, value), {})


@contextmanager
def _nothing_wrapped() -> Iterator[None]:
    """Functions that their authors hid from torch.fx (torchvision's windowed attention) are looked into."""
    registry = fx._symbolic_trace._wrapped_fns_to_patch
    kept = dict(registry)
    registry.clear()
    try:
        yield
    finally:
        registry.update(kept)


def _said(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _raised_at(error: BaseException) -> str:
    """`file:line:` of the user's code that raised, as far as there is some."""
    trace, place = error.__traceback__, ""
    while trace is not None:
        name = trace.tb_frame.f_code.co_filename
        place = place if name.startswith(NOT_THE_USERS) else f"{os.path.basename(name)}:{trace.tb_lineno}:"
        trace = trace.tb_next
    return place
