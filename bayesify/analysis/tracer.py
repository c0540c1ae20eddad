"""The torch.fx tracer that all our traces use, and the copy without weights that is traced."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any

import torch
from torch import fx, nn
from torch.fx._lazy_graph_module import _LazyGraphModule
from torch.fx._symbolic_trace import _constant_attribute_types
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from ..nn.user_code import user_code
from .copied_functions import deep_copy
from .dynamo_import import whole_dynamo
from .eager_work import BoundedWork, NotTraceableError
from .tracing import TRACING, Replacements, replacing_modules

_MAX_NODES = 50_000
_MAX_COPIED = 1 << 20  # numbers in a tensor that is copied with its values


class Tracer(fx.Tracer):
    """torch.fx's tracer; it does not look into layers, runs no hooks, and notes which code reads a Parameter.

    Attributes:
        calls: how often each module was called, by name.
        read_at: where a Parameter was read first, by name.
        read_in: in the forwards of which modules one was read, by its id, each time the outermost first.
        running: the modules whose forwards run now, the outermost first.
        left: what it left in dicts among the globals of its code, out of which it is taken again.
    """

    keeps_wrapped = True  # whether what was hidden by `torch.fx.wrap` stays one node

    def __init__(self, root: nn.Module) -> None:
        super().__init__(param_shapes_constant=True)
        self.names: dict[int, str] = {id(module): name for name, module in root.named_modules()}
        self.calls: dict[str, int] = {}
        self.read_at: dict[str, str] = {}
        self.read_in: dict[int, set[tuple[nn.Module, ...]]] = {}
        self.running, self.left = [root], list[tuple[str, fx.Node]]()

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        """The graph of a module's forward, as torch.fx's `trace` makes it, while other threads go on as they are."""
        assert isinstance(root, nn.Module)
        _LazyGraphModule.force_recompile(root)  # type: ignore[arg-type]
        self.root, self.graph = root, fx.Graph(tracer_cls=type(self))
        self.root_module_name = type(root).__name__
        self.submodule_paths = {module: name for name, module in root.named_modules()}
        self.tensor_attrs = _tensors_by_attribute(root)
        forward = type(root).forward
        function, args = self.create_args_for_root(forward, True, concrete_args)
        replaced = Replacements()
        with TRACING, whole_dynamo(replaced):
            try:
                try:
                    self.replace(replaced, forward)
                    with BoundedWork():
                        self.create_node("output", "output", (self.create_arg(function(*args)),), {})
                finally:
                    replaced.undo()
                    self.left = [*_taken_out(replaced.searched())]
            finally:
                replaced.undo()  # again: an interrupt may have stopped the first
        return self.graph

    def replace(self, replaced: Replacements, forward: Callable[..., Any]) -> None:
        """Replace what the trace of this forward needs replaced, in nn.Module and among the globals of its code."""
        proxies: dict[str, fx.Proxy] = {}
        ids = self._autowrap_function_ids

        def called(module: nn.Module, plain: Callable[..., Any], args: Any, kwargs: Any) -> Any:
            replaced.functions(getattr(getattr(module, "forward", module), "__globals__", {}), ids)
            return self.call_module(module, plain, args, kwargs)

        replacing_modules(replaced, called, lambda name, value: self.getattr(name, value, proxies))
        if self.keeps_wrapped:
            replaced.wrapped_functions()
        for table in (getattr(forward, "__globals__", {}), *map(vars, self._autowrap_search)):
            replaced.functions(table, ids)

    def path_of_module(self, mod: nn.Module) -> str:
        if id(mod) not in self.names:
            raise NotTraceableError("a module that is not part of the model was called")
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
        return self.inside(m, args, kwargs)

    def inside(self, m: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Trace what this module's forward does, as part of what runs."""
        self.running.append(m)
        try:
            # Not the `forward` that was handed in: that one would run the user's hooks, with proxies.
            return m.forward(*args, **kwargs)
        finally:
            self.running.pop()

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if isinstance(attr_val, nn.Parameter):
            self.read_in.setdefault(id(attr_val), set()).add(tuple(self.running))
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def create_node(self, kind: str, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        if len(self.graph.nodes) >= _MAX_NODES:
            raise NotTraceableError("the forward is too long to trace")
        if kind == "get_attr" and target not in self.read_at:
            self.read_at[target] = user_code(sys._getframe())
        return super().create_node(kind, target, *args, **kwargs)


def _taken_out(tables: Iterable[dict[str, Any]]) -> Iterator[tuple[str, fx.Node]]:
    users = [table for table in tables if not str(table.get("__name__")).startswith("torch")]
    held = [(name, value) for table in users for name, value in table.items() if type(value) is dict]
    for name, values in held:
        for key in [key for key, value in values.items() if isinstance(value, fx.Proxy)]:
            yield name, values.pop(key).node


def _tensors_by_attribute(root: nn.Module) -> dict[Any, str]:
    """Tensors and the like that stand in plain attributes, to be read by name; as torch.fx's tracer collects them."""
    named = root.named_modules(remove_duplicate=False)
    return {
        value: f"{name}.{key}".lstrip(".")
        for name, module in named
        for key, value in vars(module).items()
        if isinstance(value, _constant_attribute_types)
    }


def without_weights(model: nn.Module) -> nn.Module:
    """A deep copy of the model whose Parameters, and big tensors, are empty ones on meta."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        for value in chain(module._parameters.values(), module._buffers.values(), _held(vars(module))):
            if isinstance(value, torch.Tensor) and id(value) not in memo:
                memo[id(value)] = _without_data(value)
    return deep_copy(model, memo)


def _held(attributes: dict[str, Any]) -> Iterator[Any]:
    """What a module's attributes hold, and lists and dicts there: caches may be very big, or not be leaves."""
    for value in attributes.values():
        if isinstance(value, dict):
            yield from value.values()
        elif isinstance(value, list | tuple):
            yield from value
        else:
            yield value


def _without_data(value: torch.Tensor) -> torch.Tensor:
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
    """Arguments to hold fixed, for each attempt: first none, then all that have defaults, except the first argument."""
    try:
        parameters = list(inspect.signature(type(model).forward).parameters.values())[1:]
    except (TypeError, ValueError):
        return [{}]
    optional = [parameter for parameter in parameters[1:] if parameter.default is not parameter.empty]
    fixed = {parameter.name: parameter.default for parameter in optional}
    return [{}, fixed] if fixed else [{}]


