"""What a module's forward does with each weight that it reads, its own or a child's: read off its traces."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.parameter import Parameter, is_lazy

from ..nn.torch_functions import LOOK_UPS, MULTIPLICATIONS, VIEWS, harmless, is_factor, only_likens, scales
from .bytecode import reached_names
from .derived_weights import drawable, from_weights, function_of
from .forward_trace import traced_alone

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
        as_attribute: whether it views any of them as an attribute (`.T`).
        failure: why nothing is known, if so.
    """

    multiplied: dict[int, int] = field(default_factory=dict)
    drawn: dict[int, int] = field(default_factory=dict)
    problems: dict[int, str] = field(default_factory=dict)
    called: set[int] = field(default_factory=set)
    looked_up: set[int] = field(default_factory=set)
    grouped: set[int] = field(default_factory=set)
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
    return {name: each for name, each in own if not is_lazy(each) and each.dim() > 1}


def uses(module: nn.Module) -> Uses:
    """The uses of all matrices that the module's forward reads itself."""
    if type(module).forward is nn.Module.forward:
        return Uses(failure="nothing is known to multiply by it")
    held = {name: value for name, value in module.named_parameters() if not is_lazy(value) and value.dim() > 1}
    if not held:
        return Uses()
    graphs, failure = traced_alone(module)
    if not graphs:
        return Uses(failure=f"its forward does not trace: {failure}")
    found = Uses(as_attribute=any(_views_as_attribute(node) for graph in graphs for node in graph.nodes))
    keeps_no_draw = any("checkpoint" in name for name in reached_names(type(module)))  # it would compute with the mean
    traces = [(graph, from_weights(graph)) for graph in graphs]
    for name, value in held.items():
        _enter(found, value, [each for trace in traces for each in _uses(*trace, name, module)])
        if id(value) in found.problems and not keeps_no_draw and drawable(traces, name):
            del found.problems[id(value)]
            found.drawn[id(value)] = value[0].numel()
    calls = (node.target for graph in graphs for node in graph.nodes if node.op == "call_module")
    found.called.update(id(module.get_submodule(str(target))) for target in calls)
    return found


def _enter(found: Uses, value: Parameter, each: list[Any]) -> None:
    problem = next((use for use in each if isinstance(use, str)), None)
    sizes = [_fan_in(value, *use) for use in each if isinstance(use, tuple)]
    found.looked_up.update({id(value)} if None in each else ())
    if problem is not None:
        found.problems[id(value)] = problem
    elif sizes:
        found.multiplied[id(value)] = sizes[0]
        if any(isinstance(use, tuple) and use[0] in _GROUPED for use in each):
            found.grouped.add(id(value))


def _uses(
    graph: fx.Graph, weights: set[fx.Node], name: str, module: nn.Module
) -> Iterator[tuple[Any, fx.Node, fx.Node] | str | None]:
    """Each multiplication as (function, node, the weight's node there); None for a look-up; a sentence for the rest."""
    waiting = [node for node in graph.nodes if node.op == "get_attr" and node.target == name]
    while waiting:
        node = waiting.pop()
        for user in node.users:
            function = function_of(user)
            if (function in VIEWS and _views(node, user)) or _is_view(user) or _rescales(user, node, module):
                waiting.append(user)
            elif is_factor(function, user.args, user.kwargs, node) and user not in weights:
                yield function, user, node
            elif function in LOOK_UPS:
                yield None
            elif not (harmless(function) or _asks_for_form(user) or only_likens(function, user.args, node)):
                what = user.args[1] if function is getattr else getattr(function, "__name__", user.target)
                yield f"it is used in `{what}` at {user.meta.get('code', '?')}"


def _views(weight: fx.Node, user: fx.Node) -> bool:
    """Whether the weight is what is viewed, and not a Tensor whose form is taken or an index."""
    return bool(user.args) and user.args[0] is weight


def _rescales(user: fx.Node, weight: fx.Node, module: nn.Module) -> bool:
    """Whether it multiplies each element of the weight by a number, which may stand in a buffer."""
    if not scales(function_of(user), user.args, weight) or len(user.args) != 2 or user.kwargs:
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
        if not scales(function_of(node), node.args, node.args[0]):
            return None
        node = _before(node)
    return node


def _is_view(node: fx.Node) -> bool:
    if node.target is operator.getitem:
        return not any(isinstance(each, fx.Node) for each in _flat(node.args[1]))
    return node.target is getattr and node.args[1] in ("T", "mT")


def _views_as_attribute(node: fx.Node) -> bool:
    """Whether it is `weight.T`, or that of a view of a weight."""
    if node.target is not getattr or not _is_view(node):
        return False
    while node.op != "get_attr" and node.all_input_nodes:
        node = node.all_input_nodes[0]
    return bool(node.meta.get("parameter"))


def _flat(index: Any) -> Iterator[Any]:
    for each in index if isinstance(index, list | tuple) else [index]:
        if isinstance(each, slice):
            yield from (each.start, each.stop, each.step)
        else:
            yield each


def _asks_for_form(node: fx.Node) -> bool:
    return node.target is getattr and node.args[1] in ("shape", "dtype", "device", "ndim", "requires_grad", "is_cuda")


def _fan_in(weight: Tensor, function: Any, node: fx.Node, at: fx.Node) -> int:
    """By how many weights an output is a sum: a transposed view of a matrix has them in its other dimension."""
    if function is torch.einsum and at.op == "get_attr" and (size := _summed(weight, node, at)):
        return size
    if weight.dim() > 2 and function not in _MATMULS:
        return weight[0].numel()
    rows_first = (function in _MATMULS and node.args[-1] is at) or function is torch.addmm
    flipped = sum(_flips(each) for each in _chain(at)) % 2 == 1
    return weight.shape[-2 if rows_first != flipped else -1]


def _summed(weight: Tensor, node: fx.Node, at: fx.Node) -> int:
    """The sizes of the labels that an einsum of two operands sums over; 0 if it is written in another way."""
    equation, *operands = node.args
    if not isinstance(equation, str) or "->" not in equation or at not in operands:
        return 0
    sides, out = equation.replace(" ", "").split("->")
    labels = sides.split(",")[operands.index(at)]
    return prod(size for label, size in zip(labels, weight.shape, strict=False) if label not in out)


_GROUPED = tuple(each for each, reader in MULTIPLICATIONS.items() if reader is MULTIPLICATIONS[torch._grouped_mm])
_MATMULS = (*(each for each, reader in MULTIPLICATIONS.items() if reader is MULTIPLICATIONS[torch.matmul]), *_GROUPED)


def _chain(node: fx.Node) -> Iterator[fx.Node]:
    while node.op != "get_attr":
        yield node
        node = _before(node)


def _before(node: fx.Node) -> fx.Node:
    """What is viewed, or multiplied by a number, which may stand in a buffer."""
    first, *others = node.all_input_nodes
    return others[0] if first.op == "get_attr" and not first.meta["parameter"] else first


def _flips(node: fx.Node) -> bool:
    names = {"t", "transpose", "swapaxes"}
    return str(node.target) in names or getattr(node.target, "__name__", "") in names or node.target is getattr
