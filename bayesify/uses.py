"""Which of its own Parameters a module's forward multiplies by, read off a torch.fx trace of that one module."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from .graph import traced_alone
from .nn.multiplications import MULTIPLICATIONS, VIEWS, harmless


@dataclass(frozen=True)
class Uses:
    """What a module's forward does with the matrices that it owns.

    Attributes:
        weights: (name, fan-in) of those that it only multiplies by.
        problems: name -> why another one must stay, with the line of code that says so.
    """

    weights: tuple[tuple[str, int], ...]
    problems: dict[str, str]


def own_uses(module: nn.Module) -> Uses:
    """The uses of the Parameters of two or more dimensions that `module` owns itself; its children are opaque."""
    names = [name for name, each in module.named_parameters(recurse=False) if each.dim() > 1]
    graph, failure = traced_alone(module)
    if graph is None:
        return Uses((), dict.fromkeys(names, f"its forward does not trace: {failure}"))
    weights, problems = [], {}
    for name in names:
        found = list(_uses(graph, name))
        problem = next((each for each in found if isinstance(each, str)), None)
        if problem or not found:
            problems[name] = problem or "its forward never uses it"
        else:
            weights.append((name, _fan_in(module.get_parameter(name), *found[0])))
    return Uses(tuple(weights), problems)


def _uses(graph: fx.Graph, name: str) -> Iterator[tuple[Any, fx.Node, fx.Node] | str]:
    """Each multiplication as (function, node, the weight's node there), or a sentence for a use that is none."""
    waiting = [node for node in graph.nodes if node.op == "get_attr" and node.target == name]
    while waiting:
        node = waiting.pop()
        for user in node.users:
            function = _function(user)
            if function in VIEWS or _is_view(user):
                waiting.append(user)
            elif function in MULTIPLICATIONS and sum(each is node for each in user.all_input_nodes) == 1:
                yield function, user, node
            elif not harmless(function) and not _asks_for_form(user):
                yield f"used in {user.target if isinstance(user.target, str) else user.name} at {user.meta.get('code', '?')}"


def _function(node: fx.Node) -> Any:
    if node.op == "call_method":
        return getattr(Tensor, str(node.target), None)
    return node.target if node.op == "call_function" else None


def _is_view(node: fx.Node) -> bool:
    if node.target is operator.getitem:
        return not any(isinstance(each, fx.Node) for each in fx.node.map_aggregate(node.args[1:], lambda each: each))
    return node.target is getattr and node.args[1] in ("T", "mT")


def _asks_for_form(node: fx.Node) -> bool:
    return node.target is getattr and node.args[1] in ("shape", "dtype", "device", "ndim", "requires_grad")


def _fan_in(weight: Tensor, function: Any, node: fx.Node, at: fx.Node) -> int:
    """By how many weights an output is a sum: a transposed view of a matrix has them in its other dimension."""
    if function in (F.linear, F.bilinear) or weight.dim() > 2 and function not in _MATMULS:
        return weight[0].numel()
    rows_first = function in _MATMULS and node.args[-1] is at or function is torch.addmm
    flipped = sum(_flips(each) for each in _chain(at)) % 2 == 1
    return weight.shape[-2 if rows_first != flipped else -1]


_MATMULS = tuple(each for each, reader in MULTIPLICATIONS.items() if reader is MULTIPLICATIONS[torch.matmul])


def _chain(node: fx.Node) -> Iterator[fx.Node]:
    while node.op != "get_attr":
        yield node
        node = node.all_input_nodes[0]


def _flips(node: fx.Node) -> bool:
    names = {"t", "transpose", "swapaxes"}
    return str(node.target) in names or getattr(node.target, "__name__", "") in names or node.target is getattr
