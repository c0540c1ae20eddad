"""The tracer of one module's forward: its children are single nodes, values that it does not know stand-ins."""

from __future__ import annotations

import inspect
import operator
import sys
from collections.abc import Callable, Collection, Iterator
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch.utils.checkpoint import CheckpointFunction

from ..nn.registry import plain_classes
from ..nn.torch_functions import VIEWS
from ..nn.user_code import user_code
from ..programs.operators import call_of
from .eager_work import NotTraceableError
from .proxies import Size, Unknown, Weight, is_size
from .tracer import Tracer
from .tracing import Replacements

_MOST_BRANCHES = 500
Way = Literal["place", "name", "more"]  # how a forward gets its arguments; "more": it has *args or **kwargs
MORE = {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}
# functions that torch.fx does not record when a proxy, of a size or a dtype, is among their arguments
_CONSTRUCTORS = (
    torch.tensor, torch.as_tensor, torch.zeros, torch.ones, torch.empty, torch.rand, torch.randn, torch.finfo,
)  # fmt: skip
GATHERS: frozenset[Any] = frozenset(
    {torch.index_select, torch.gather, Tensor.index_select, Tensor.gather, operator.getitem, Tensor.__getitem__}
)
_IN_PLACE = (operator.setitem, operator.iadd, operator.isub, operator.imul, operator.itruediv)


class LoneTracer(Tracer):
    """Looks into no module except the root, and notes where in the user's code each node was made.

    Args:
        root: the module.
        choices: which way the first branches on data take.
        default: which way the other branches take.
        way: how the forward gets its arguments.
        told: sizes, dtypes and devices have fixed values instead of unknown ones, for code that makes tensors of them.
        into: the modules below the root to look into, beside those that are handed its weights or another module; None
            to look into none at all.

    Attributes:
        looked_into: the names of the modules that it did look into.
    """

    keeps_wrapped = False  # functions hidden from torch.fx (torchvision's windowed attention) are looked into

    def __init__(
        self, root: nn.Module, choices: list[bool], default: bool, way: Way, told: bool,
        into: Collection[nn.Module] | None,
    ) -> None:  # fmt: skip
        super().__init__(root)
        self.into, self.looked_into = into, set[str]()
        self.told = self.proxy_buffer_attributes = told  # a buffer may be viewed by sizes that are not its own
        self.top, self.choices, self.default, self.way = root, choices, default, way
        self.taken: list[bool] = []
        self.parameters = dict(root.named_parameters())
        self._autowrap_function_ids |= {id(function) for function in _CONSTRUCTORS}
        self._autowrap_search.append(torch)

    def replace(self, replaced: Replacements, forward: Callable[..., Any]) -> None:
        super().replace(replaced, forward)
        here, check = replaced.here, torch._check_with

        def unchecked(*args: Any, **kwargs: Any) -> None:
            if not here:  # an unknown value would not pass
                check(*args, **kwargs)

        replaced.attribute(torch, "_check_with", unchecked)
        replaced.attribute(torch.autograd.Function, "apply", self._function_apply(here))

    def _function_apply(self, here: Any) -> Any:
        """An autograd.Function enters a node that takes all its arguments, and then what its forward is made of.

        Its backward multiplies by what it was given, so that whatever its forward shows, noise must be in the argument.
        """
        descriptor = vars(torch.autograd.Function)["apply"]

        def apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
            plain = descriptor.__get__(None, cls)
            if not here or cls is CheckpointFunction:
                return plain(*args, **kwargs)
            node = self.create_proxy("call_function", _FunctionCall(cls), args, kwargs)
            try:
                return plain(*args, **kwargs)
            except Exception:
                return node

        return classmethod(apply)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return m is not self.top

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if id(m) not in self.names and not any(True for _ in m.parameters()):
            return m.forward(*args, **kwargs)  # an activation that is made where it is used
        if self._looks_into(m, [*args, *kwargs.values()]):
            self.looked_into.add(self.path_of_module(m))
            return self.inside(m, args, kwargs)
        return super().call_module(m, forward, args, kwargs)

    def _looks_into(self, m: nn.Module, given: list[Any]) -> bool:
        if self.into is None or m in self.into:
            return self.into is not None
        if type(m).__module__.startswith("torch.nn.") or type(m) in plain_classes():
            return False
        flat = [part for value in given for part in _parts(value)]
        return any(isinstance(part, nn.Module) for part in flat) or self._hold_weight(flat)

    def _hold_weight(self, given: list[Any]) -> bool:
        nodes = [part.node for part in given if isinstance(part, fx.Proxy)]
        read = any(node.meta["parameter"] for node in self.graph.nodes)
        return read and bool(from_weights(self.graph).intersection(nodes))

    def create_args_for_root(self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None) -> Any:
        """By position, or all except the first by name; torch.fx itself would rewrite a decorator's code."""
        if self.way == "more":
            return super().create_args_for_root(root_fn, is_module, concrete_args)
        values, fixed = list[Any](), concrete_args or {}
        parameters = list(inspect.signature(root_fn).parameters.values())[1:]
        named = [parameter for parameter in parameters if parameter.kind not in MORE]
        for name in (parameter.name for parameter in named):
            values.append(fixed[name] if name in fixed else self.create_proxy("placeholder", name, (), {}))
        first = sum(self._by_position(parameter, at) for at, parameter in enumerate(named))
        names = [parameter.name for parameter in named[first:]]

        def called(root: nn.Module, *given: Any) -> Any:
            return root_fn(root, *given[:first], **dict(zip(names, given[first:], strict=True)))

        return called, [self.root, *values]

    def _by_position(self, parameter: inspect.Parameter, at: int) -> bool:
        if parameter.kind is parameter.KEYWORD_ONLY:
            return False
        return self.way == "place" or parameter.kind is parameter.POSITIONAL_ONLY or at == 0

    def create_node(self, kind: str, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(kind, target, *args, **kwargs)
        node.meta["code"] = user_code(sys._getframe())
        node.meta["parameter"] = kind == "get_attr" and target in self.parameters
        return node

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return Size(node, self) if self.told and is_size(node) else Unknown(node, self)

    def create_proxy(self, kind: str, target: Any, *args: Any, proxy_factory_fn: Any = None, **kwargs: Any) -> fx.Proxy:
        if proxy_factory_fn is not None:  # a Parameter or a buffer
            value = self.parameters.get(target)
            weight = None if value is None else lambda node: Weight(self, node, target, value)
            kwargs["proxy_factory_fn"] = weight or self.proxy
        return super().create_proxy(kind, target, *args, **kwargs)

    def to_bool(self, obj: fx.Proxy) -> bool:
        if len(self.taken) > _MOST_BRANCHES:
            raise NotTraceableError("it branches too often to trace")
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


def from_weights(graph: fx.Graph) -> set[fx.Node]:
    """Nodes that come from the module's Parameters and not from its inputs, in a graph of a `LoneTracer`."""
    weights = {node for node in graph.nodes if node.op == "get_attr" and node.meta.get("parameter")}
    moving: set[fx.Node] = set()
    for node in graph.nodes:
        before = node.all_input_nodes
        if node.op in ("placeholder", "call_module") or (moving.intersection(before) and not gathers(node, weights)):
            moving.add(node)
        elif weights.intersection(before):
            weights.add(node)
    return weights


def read_by(node: fx.Node) -> set[str]:
    """The names of the Parameters and buffers that a node's value is computed from."""
    waiting, seen = [node], {node}
    while waiting:
        fresh = set(waiting.pop().all_input_nodes) - seen
        seen |= fresh
        waiting += fresh
    return {str(each.target) for each in seen if each.op == "get_attr"}


def writes(node: fx.Node) -> bool:
    """In place, or past autograd."""
    name = node.args[1] if node.target is getattr else getattr(node.target, "__name__", node.target)
    in_place = isinstance(name, str) and not name.startswith("__") and (name == "data" or name.endswith("_"))
    return in_place or node.target in _IN_PLACE or node.kwargs.get("out") is not None


def gathers(node: fx.Node, weights: set[fx.Node]) -> bool:
    """Rows of a weight that data select, or a view whose sizes they tell."""
    call = call_of(node)
    function = None if call is None else call.function
    return (function in GATHERS or function in VIEWS) and bool(node.args) and node.args[0] in weights


def _parts(value: Any) -> Iterator[Any]:
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else None
    yield from (value,) if inside is None else (part for each in inside for part in _parts(each))


class _FunctionCall:
    """What stands in a graph for a call of an autograd.Function."""

    def __init__(self, function: type[torch.autograd.Function]) -> None:
        self.function = function
        self.__name__, self.__module__ = f"{function.__qualname__}.apply", function.__module__

    def __call__(self, *args: Any) -> Any:
        return self.function.apply(*args)  # type: ignore[no-untyped-call]


def is_autograd_function(target: Any) -> bool:
    """Whether a node's target stands for a call of an autograd.Function."""
    return isinstance(target, _FunctionCall)
