"""Which layers one traced forward of a model calls, and whose weights it reads without calling them.

A model that does not trace has no census and is planned from its code alone. Where there is a census, the plan relies
on it: a layer that it saw called is not blocked for a parent's code that reads its weight.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

from .eager_work import NotTraceableError
from .side_effects import same_randomness
from .tracer import Tracer, argument_choices, without_weights
from .tracing import TRACING


@dataclass(frozen=True)
class Census:
    """Which modules one traced forward called, how often, in which order, and whose weights the forward itself read.

    Attributes:
        calls: number of calls by canonical name, containers too.
        order: the names by their first call.
        reads: by canonical name, the `file:line` of code outside the module that read its Parameter.
        unseen: names inside a module that was called but not traced (nn.MultiheadAttention): nothing is known of them.
        reached_into: names of modules whose forward reads a Parameter that is neither its own nor of a module below it,
            and of those that call them, up to one above the Parameter.
    """

    calls: dict[str, int]
    order: tuple[str, ...]
    reads: dict[str, str]
    unseen: frozenset[str]
    reached_into: frozenset[str] = frozenset()

    def never_called(self, name: str) -> bool:
        """Whether the traced forward, in the model's present mode (train or eval), did not call this module."""
        return name not in self.calls and name not in self.unseen


def census(model: nn.Module) -> Census | None:
    """Trace the model's forward and count calls; None where the trace fails for any reason.

    A copy without weights is traced, so that a forward that counts, logs or clamps leaves the model as it is. Forward
    hooks do not run. The user's forward itself runs, with proxies: what it prints is printed. Other threads may
    call modules meanwhile; threads that trace take turns.
    """
    with TRACING, same_randomness(), warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        for concrete in argument_choices(model):
            try:
                return _trace(without_weights(model), concrete)
            except Exception:
                # The forward is the user's: whatever it raises when it meets a proxy means only "does not trace".
                continue
    return None


def _trace(root: nn.Module, concrete: dict[str, Any]) -> Census:
    tracer = _CensusTracer(root)
    if tracer.is_leaf_module(root, ""):
        return Census({"": 1}, ("",), {}, frozenset(name for name, _ in root.named_modules() if name))
    if "forward" in vars(root):
        raise NotTraceableError("torch.fx would trace the class's forward, and the instance has its own")
    graph = tracer.trace(root, concrete)
    calls = {"": 1, **tracer.calls}
    closed = [node.target for node in graph.nodes if node.op in ("call_module", "get_attr")]
    unseen = frozenset(_names_inside(root, closed)) - calls.keys()
    reads = _foreign_reads(root, tracer)
    into = frozenset(tracer.names[id(module)] for read in reads for module in read.below)
    places = {read.owner: tracer.read_at.get(read.parameter, "?") for read in reads}
    return Census(calls, tuple(calls), places, unseen, into)


class _CensusTracer(Tracer):
    """Looks for a moment into layers of the user's own, which may read the weights of others."""

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if not type(m).__module__.startswith("torch.") and self.is_leaf_module(m, self.path_of_module(m)):
            with suppress(Exception):  # the user's: whatever it raises means only that it does not trace
                self.inside(m, args, kwargs)
        return super().call_module(m, forward, args, kwargs)


def _names_inside(root: nn.Module, targets: list[str]) -> Iterator[str]:
    """Canonical names of the modules at and below the targets that are modules (a get_attr may name a Parameter)."""
    modules = dict(root.named_modules(remove_duplicate=False))
    names = {id(module): name for name, module in root.named_modules()}
    for target in set(targets) & modules.keys():
        yield from (names[id(module)] for module in modules[target].modules())


class _Read(NamedTuple):
    """A read of a Parameter by the forward of a module that does not own it.

    Attributes:
        parameter: its name.
        owner: the name of a module that owns it.
        below: the modules whose forwards ran then, from the first on that does not hold the owner.
    """

    parameter: str
    owner: str
    below: tuple[nn.Module, ...]


def _foreign_reads(root: nn.Module, tracer: Tracer) -> list[_Read]:
    """The reads of every owner: a tied Parameter has several."""
    found: list[_Read] = []
    if not tracer.read_in:
        return found
    held = {module: {id(value) for value in module.parameters()} for module in root.modules()}
    names = {id(value): name for name, value in root.named_parameters()}
    for owner, module in root.named_modules():
        for value in module.parameters(recurse=False):
            for running in tracer.read_in.get(id(value), ()):
                if all(value is not own for own in running[-1].parameters(recurse=False)):
                    below = tuple(each for each in running if id(value) not in held.get(each, ()))
                    found.append(_Read(names[id(value)], owner, below))
    return found
