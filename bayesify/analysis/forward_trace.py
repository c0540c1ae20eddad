"""One module's forward, traced by torch.fx with its children opaque: to see what it does with weights.

A branch on data is taken one way in a first trace and the other way in a second, and a forward that asks for its mode
is traced in both: the traces must show every use of a weight, and are not graphs to run.
"""

from __future__ import annotations

import inspect
import os
import warnings
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch
from torch import fx, nn

from ..nn.user_code import NOT_THE_USERS
from .bytecode import reached_names
from .eager_work import TooMuchWorkError
from .lone_tracer import MORE, LoneTracer, Way, writes
from .side_effects import same_randomness
from .tracer import argument_choices, without_weights
from .tracing import TRACING

_ATTEMPTS = 12


@dataclass(frozen=True)
class Traces:
    """What traces of one module's forward show.

    Attributes:
        graphs: one for each way through its branches, in train and in eval mode; none where it does not trace.
        looked_into: the names of the modules below it that a graph shows from inside.
        kept: where a forward left something that it computed, and the node of that.
        failure: why it does not trace, or "".
    """

    graphs: tuple[fx.Graph, ...] = ()
    looked_into: frozenset[str] = frozenset()
    kept: tuple[tuple[str, fx.Node], ...] = ()
    failure: str = ""

    def __add__(self, more: Traces) -> Traces:
        """Both, as far as they trace."""
        graphs, kept = (*self.graphs, *more.graphs), (*self.kept, *more.kept)
        return Traces(graphs, self.looked_into | more.looked_into, kept, "" if graphs else self.failure)


@dataclass(frozen=True)
class _Manner:
    """How to trace a forward: the arguments of `LoneTracer`, fixed values of some of its own, and the mode."""

    training: bool
    into: Collection[int] | None
    concrete: dict[str, Any]
    way: Way
    told: bool
    default: bool = False


def traced_alone(module: nn.Module, look_into: Collection[int] = ()) -> Traces:
    """Traces of this one module's forward; or none, and why it did not trace.

    Args:
        module: the module. Calls of modules below it are single nodes, except of those that are handed a weight, or
            another module.
        look_into: the ids of other modules to look into.
    """
    with TRACING, same_randomness(), warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        traces = _in_mode(module, module.training, look_into)
        asks = traces.graphs and "training" in reached_names(type(module))
        return traces + _in_mode(module, not module.training, look_into) if asks else traces


def _in_mode(module: nn.Module, training: bool, look_into: Collection[int]) -> Traces:
    traces = _first_that_traces(module, training, look_into)
    return traces if traces.graphs or not traces.looked_into else _first_that_traces(module, training, None)


def _first_that_traces(module: nn.Module, training: bool, into: Collection[int] | None) -> Traces:
    choices, failed = [*reversed(argument_choices(module))], Traces()
    for way, concrete, told in product(_ways(type(module).forward), choices, (False, True)):
        manner = _Manner(training, into, concrete, way, told)
        traces, branched = _explored(module, manner)
        traces += _explored(module, replace(manner, default=True))[0] if branched else Traces()
        if traces.graphs:
            return traces
        failure = failed.failure or traces.failure
        failed = Traces(looked_into=failed.looked_into | traces.looked_into, failure=failure)
    return failed


def _ways(forward: Any) -> tuple[Way, ...]:
    """How to pass it arguments: a decorated forward may take them by position or by name."""
    if inspect.unwrap(forward) is not forward:
        return "place", "name"
    kinds = {parameter.kind for parameter in inspect.signature(forward).parameters.values()}
    return ("place", "more") if kinds & MORE else ("place",)


def _explored(module: nn.Module, manner: _Manner) -> tuple[Traces, bool]:
    """The first graph that can be traced, or why none can; and whether the forward has branches on data.

    Branches take the default way; after a failure the last branch takes the other way.
    """
    choices: list[bool] = []
    looked, failure = set[str](), ""
    for _ in range(_ATTEMPTS):
        try:
            copied = _copy_to_trace(module, manner.training)
        except Exception as error:
            return Traces(failure=f"it cannot be copied: {_said(error)}"), False
        tracer = LoneTracer(
            copied, choices, manner.default, manner.way, manner.told, _twins(module, copied, manner.into)
        )
        looked = tracer.looked_into
        try:
            graph = tracer.trace(copied, manner.concrete)
            return Traces((graph,), frozenset(looked), (*tracer.left, *_kept(copied, graph))), bool(tracer.taken)
        except Exception as error:
            failure = failure or f"{_raised_at(error)} {_said(error)}"
            if isinstance(error, TooMuchWorkError):
                break
        choices = tracer.taken
        while choices and choices[-1] is not manner.default:
            choices.pop()
        if not choices:
            break
        choices[-1] = not manner.default
    return Traces(looked_into=frozenset(looked), failure=failure), bool(tracer.taken)


def _copy_to_trace(module: nn.Module, training: bool) -> nn.Module:
    copied = without_weights(module)
    if module.training is not training:
        for each in copied.modules():  # `train` may be the user's own, and compute
            each.training = training
    return copied


def _twins(module: nn.Module, copied: nn.Module, ids: Collection[int] | None) -> set[nn.Module] | None:
    if ids is None:
        return None
    pairs = zip(module.modules(), copied.modules(), strict=True) if ids else ()
    return {twin for each, twin in pairs if id(each) in ids}


def _kept(module: nn.Module, graph: fx.Graph) -> Iterator[tuple[str, fx.Node]]:
    """Where its forward left what it computed: on the modules, and in buffers."""
    for name, each in module.named_modules():
        place = f"self.{name}." if name else "self."
        for key, value in (*vars(each).items(), *each._buffers.items()):
            yield from ((f"{place}{key}", part.node) for part in _values(value) if _is_of(part, graph))
    parameters = dict(module.named_parameters())
    for node in graph.nodes:
        into = node.args[0] if writes(node) and node.args else None
        if isinstance(into, fx.Node) and into.op == "get_attr" and into.target not in parameters:
            yield f"self.{into.target}", node


def _values(value: Any) -> Iterable[Any]:
    return [*value.values()] if isinstance(value, dict) else value if isinstance(value, list | tuple) else (value,)


def _is_of(value: Any, graph: fx.Graph) -> bool:
    return isinstance(value, fx.Proxy) and value.node.graph is graph


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
