"""One module's forward, traced by torch.fx with its children opaque: to see what it does with weights.

A branch on data is taken one way in a first trace and the other way in a second: the traces must show every use of a
weight, and are not graphs to run.
"""

from __future__ import annotations

import inspect
import operator
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any, Literal

import torch
from torch import fx, nn
from torch.utils.checkpoint import CheckpointFunction

from .proxies import Size, Unknown, Weight, is_size
from .side_effects import same_randomness
from .tracer import NOT_THE_USERS, NotTraceableError, Tracer, argument_choices, user_code, without_weights
from .tracing import TRACING, Replacements

_ATTEMPTS = 12
_MOST_BRANCHES = 500
Way = Literal["place", "name", "more"]  # how a forward gets its arguments; "more": it has *args or **kwargs
_MORE = {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}
# functions that torch.fx does not record when a proxy, of a size or a dtype, is among their arguments
_CONSTRUCTORS = (
    torch.tensor, torch.as_tensor, torch.zeros, torch.ones, torch.empty, torch.rand, torch.randn, torch.finfo,
)  # fmt: skip


def traced_alone(module: nn.Module) -> tuple[list[fx.Graph], str]:
    """Graphs of this one module's forward, one for each way through its branches; or none, and why it did not trace."""
    failure = ""
    with TRACING, same_randomness(), warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        choices = [*reversed(argument_choices(module))]
        for way, concrete, told in product(_ways(type(module).forward), choices, (False, True)):
            first, branched = _explored(module, concrete, False, way, told)
            outcomes = [first, _explored(module, concrete, True, way, told)[0]] if branched else [first]
            graphs = [outcome for outcome in outcomes if isinstance(outcome, fx.Graph)]
            if graphs:
                return graphs, ""
            failure = failure or str(outcomes[0])
    return [], failure


def _ways(forward: Any) -> tuple[Way, ...]:
    """How to pass it arguments: a decorated forward may take them by position or by name."""
    if inspect.unwrap(forward) is not forward:
        return "place", "name"
    kinds = {parameter.kind for parameter in inspect.signature(forward).parameters.values()}
    return ("place", "more") if kinds & _MORE else ("place",)


def _explored(
    module: nn.Module, concrete: dict[str, Any], default: bool, way: Way, told: bool
) -> tuple[fx.Graph | str, bool]:
    """The first graph that can be traced, or why none can; and whether the forward has branches on data.

    Branches take the default way; after a failure the last branch takes the other way.
    """
    choices: list[bool] = []
    failure = ""
    for _ in range(_ATTEMPTS):
        try:
            copied = without_weights(module)
        except Exception as error:
            return f"it cannot be copied: {_said(error)}", False
        tracer = _Alone(copied, choices, default, way, told)
        try:
            return tracer.trace(copied, concrete), bool(tracer.taken)
        except Exception as error:
            failure = failure or f"{_raised_at(error)} {_said(error)}"
        choices = tracer.taken
        while choices and choices[-1] is not default:
            choices.pop()
        if not choices:
            break
        choices[-1] = not default
    return failure, bool(tracer.taken)


class _Alone(Tracer):
    """Looks into no module except the root, and notes where in the user's code each node was made.

    Args:
        root: the module.
        choices: which way the first branches on data take.
        default: which way the other branches take.
        way: how the forward gets its arguments.
        told: sizes, dtypes and devices have fixed values instead of unknown ones, for code that makes tensors of them.
    """

    keeps_wrapped = False  # functions hidden from torch.fx (torchvision's windowed attention) are looked into

    def __init__(self, root: nn.Module, choices: list[bool], default: bool, way: Way, told: bool) -> None:
        super().__init__(root)
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
        return super().call_module(m, forward, args, kwargs)

    def create_args_for_root(self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None) -> Any:
        """By position, or all except the first by name; torch.fx itself would rewrite a decorator's code."""
        if self.way == "more":
            return super().create_args_for_root(root_fn, is_module, concrete_args)
        values, fixed = list[Any](), concrete_args or {}
        parameters = list(inspect.signature(root_fn).parameters.values())[1:]
        named = [parameter for parameter in parameters if parameter.kind not in _MORE]
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


def _said(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _raised_at(error: BaseException) -> str:
    """`file:line:` of the user's code that raised, or "" where none of the user's code did."""
    trace, place = error.__traceback__, ""
    while trace is not None:
        name = trace.tb_frame.f_code.co_filename
        place = place if name.startswith(NOT_THE_USERS) else f"{os.path.basename(name)}:{trace.tb_lineno}:"
        trace = trace.tb_next
    return place
