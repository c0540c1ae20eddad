"""What a module's forward does with each weight that it reads, its own or a child's: read off its traces."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import fx, nn
from torch.nn.parameter import Parameter, is_lazy

from ..estimators.products import GroupedProduct
from ..nn.torch_functions import Role
from ..programs.operators import call_of
from ..programs.weight_flow import Reached, fan_in, follow, form_of, node_role, product_of
from .bytecode import reached_names
from .derived_weights import drawable
from .forward_trace import traced_alone
from .lone_tracer import from_weights, read_by

UNTRACED = "its forward does not trace"
UNUSED = "its forward never uses it"


@dataclass(frozen=True)
class Uses:
    """What a module's forward does with the matrices that it reads, by the Parameter's id.

    Attributes:
        multiplied: those that it only multiplies by, or looks up in beside that: the fan-in of an output.
        drawn: those that it computes another weight from, and multiplies by that: likewise.
        problems: why another one must stay, with the line of code that says so.
        called: the ids of its children that it calls.
        looked_up: those whose rows it looks up.
        grouped: those of which each row of a batch takes a part of its own (experts).
        kept: where it keeps what it computes from one of them, and not from data.
        remembers: where it keeps what layers gave, for its next call if its code reads it there.
        as_attribute: whether it views any of them as an attribute (`.T`).
        failure: why nothing is known, if so.
    """

    multiplied: dict[int, int] = field(default_factory=dict)
    drawn: dict[int, int] = field(default_factory=dict)
    problems: dict[int, str] = field(default_factory=dict)
    called: set[int] = field(default_factory=set)
    looked_up: set[int] = field(default_factory=set)
    grouped: set[int] = field(default_factory=set)
    kept: dict[int, tuple[str, ...]] = field(default_factory=dict)
    remembers: tuple[str, ...] = ()
    as_attribute: bool = False
    failure: str = ""

    def problem(self, matrix: Parameter) -> str | None:
        """Why this matrix cannot be rerouted, or None."""
        if id(matrix) in self.multiplied or id(matrix) in self.drawn:
            return None
        unused = "its forward only looks rows up" if id(matrix) in self.looked_up else UNUSED
        return self.problems.get(id(matrix)) or self.failure or unused

    @property
    def unseen_by_dynamo(self) -> bool:
        """Whether a view of a weight would, or may, be taken where Dynamo does not show it to a mode."""
        return self.as_attribute or bool(self.failure)


def matrices(module: nn.Module) -> dict[str, Parameter]:
    """The module's own Parameters of two or more dimensions, by name."""
    own = module.named_parameters(recurse=False)
    return {name: parameter for name, parameter in own if not is_lazy(parameter) and parameter.dim() > 1}


def uses(module: nn.Module, look_into: Collection[int] = ()) -> Uses:
    """The uses of all matrices that the module's forward reads itself, or modules to `look_into`, by their ids."""
    if isinstance(module, torch.jit.ScriptModule) or type(module).forward is nn.Module.forward:
        return Uses(failure="nothing is known to multiply by it")
    held = {name: value for name, value in module.named_parameters() if not is_lazy(value) and value.dim() > 1}
    if not held:
        return Uses()
    traced = traced_alone(module, look_into)
    graphs = traced.graphs
    if not graphs:
        return Uses(failure=f"{UNTRACED}: {traced.failure}")
    keeps_no_draw = any("checkpoint" in name for name in reached_names(type(module)))  # it would compute with the mean
    traces = [(graph, from_weights(graph)) for graph in graphs]
    uses = Uses(
        as_attribute=any(_views_as_attribute(node) for graph in graphs for node in graph.nodes),
        remembers=tuple(dict.fromkeys(place for place, node in traced.kept if _is_of_layers(node))),
    )
    for place, node in traced.kept:
        if node.op != "get_attr" and any(node in weights for _, weights in traces):
            for matrix in (id(held[name]) for name in read_by(node) if name in held):
                uses.kept[matrix] = (*uses.kept.get(matrix, ()), place)
    for name, value in held.items():
        _enter(uses, value, [use for trace in traces for use in _uses(*trace, name, module)])
        if id(value) in uses.problems and not keeps_no_draw and drawable(traces, name):
            del uses.problems[id(value)]
            uses.drawn[id(value)] = value[0].numel()
        elif value.is_complex() and id(value) in uses.multiplied:
            _draw_complex(uses, value, keeps_no_draw)
    calls = {str(node.target) for graph in graphs for node in graph.nodes if node.op == "call_module"}
    uses.called.update(id(module.get_submodule(name)) for name in calls | traced.looked_into)
    return uses


def _is_of_layers(node: fx.Node) -> bool:
    waiting, seen = [node], {node}
    while waiting:
        before = waiting.pop()
        if before.op == "call_module":
            return True
        fresh = {given for given in before.all_input_nodes if node_role(before, given) is not Role.FORM} - seen
        seen |= fresh
        waiting += fresh
    return False


def _enter(uses: Uses, value: Parameter, judged: list[_Product | str | None]) -> None:
    problem = next((use for use in judged if isinstance(use, str)), None)
    products = [use for use in judged if isinstance(use, _Product)]
    uses.looked_up.update({id(value)} if None in judged else ())
    if problem is not None:
        uses.problems[id(value)] = problem
    elif products:
        uses.multiplied[id(value)] = products[0].fan_in
        if any(product.grouped for product in products):
            uses.grouped.add(id(value))


def _draw_complex(uses: Uses, value: Parameter, keeps_no_draw: bool) -> None:
    """No estimator multiplies by complex numbers: a draw of them does."""
    fan_in = uses.multiplied.pop(id(value))
    if keeps_no_draw:
        uses.problems[id(value)] = "its numbers are complex, and checkpointing would compute with their mean"
    else:
        uses.drawn[id(value)] = fan_in


class _Product(NamedTuple):
    fan_in: int
    grouped: bool


def _uses(
    graph: fx.Graph, weights: set[fx.Node], name: str, module: nn.Module
) -> Iterator[_Product | str | None]:
    """Each use of the weight: a product; None for a look-up; a sentence for the rest."""
    reads = [node for node in graph.nodes if node.op == "get_attr" and node.target == name]
    for reached in follow(graph, reads, lambda user, given: _role(user, given, module)):
        product = None
        if reached.role is Role.FACTOR and reached.user not in weights:
            product = _product(reached, module.get_parameter(name))
        if product is not None:
            yield product
        elif reached.role is Role.ROWS:
            yield None
        elif reached.role is not Role.FORM:
            user, call = reached.user, call_of(reached.user)
            function = None if call is None else call.function
            what = user.args[1] if user.target is getattr else getattr(function, "__name__", user.target)
            yield f"it is used in `{what}` at {user.meta.get('code', '?')}"


def _product(reached: Reached, weight: Parameter) -> _Product | None:
    call, form = call_of(reached.user), form_of(reached, weight)
    assert call is not None
    if form is None:  # data tell the sizes of a view: as of a matrix that is not viewed
        return _Product(weight[0].numel(), False)
    use = product_of(call, reached.given, form)
    return None if use is None else _Product(fan_in(use, form), isinstance(use.product, GroupedProduct))


def _role(user: fx.Node, given: fx.Node, module: nn.Module) -> Role:
    """As the function says; a weight times numbers, which may stand in a buffer, is followed as a view is."""
    role = node_role(user, given)
    if role is Role.SCALED:
        return Role.VIEW if _rescales(user, given, module) else Role.OTHER
    return role


def _rescales(user: fx.Node, weight: fx.Node, module: nn.Module) -> bool:
    """Whether it multiplies each element of the weight by a number, which may stand in a buffer."""
    if len(user.args) != 2 or user.kwargs:
        return False
    other = user.args[user.args[0] is weight]
    if isinstance(other, int | float):
        return True
    buffers, whole = dict(module.named_buffers()), _whole(weight)
    if whole is None or not isinstance(other, fx.Node) or other.op != "get_attr" or other.target not in buffers:
        return False
    shape, its = module.get_parameter(str(whole.target)).shape, buffers[str(other.target)].shape
    return len(its) <= len(shape) and all(one in (1, size) for one, size in zip(its[::-1], shape[::-1], strict=False))


def _whole(node: fx.Node) -> fx.Node | None:
    """The weight, where this is one times numbers, element by element."""
    while node.op != "get_attr":
        first, *others = node.all_input_nodes
        before = others[0] if first.op == "get_attr" and not first.meta["parameter"] else first
        if node_role(node, before) is not Role.SCALED:
            return None
        node = before
    return node


def _views_as_attribute(node: fx.Node) -> bool:
    """Whether it is `weight.T`, or that of a view of a weight."""
    if node.target is not getattr or node.args[1] not in ("T", "mT"):
        return False
    while node.op != "get_attr" and node.all_input_nodes:
        node = node.all_input_nodes[0]
    return bool(node.meta.get("parameter"))
