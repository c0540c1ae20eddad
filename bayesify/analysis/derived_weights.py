"""Weights that a forward computes with before it multiplies: standardized, normalized, scaled, masked, gathered.

A draw of such a weight, taken once for each call of its module, goes through the forward's own code in its place: that
is exact for whatever the code does. Here it is read off the traces where that is a product, and not a sum with data, as
for positions, tokens and biases, which keep no posterior.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, fx

from ..nn.torch_functions import MULTIPLICATIONS, VIEWS, Role, only_for_weights
from ..programs.operators import call_of
from ..programs.weight_flow import node_role
from .lone_tracer import GATHERS, is_autograd_function, writes

_WITHOUT_GRADIENT = (torch.detach, Tensor.detach)


def drawable(traces: Iterable[tuple[fx.Graph, set[fx.Node]]], name: str) -> bool:
    """Whether what is computed from this weight is multiplied by, and no data are written to the weight itself.

    Args:
        traces: graphs of the forward, and what `from_weights` finds in each.
        name: the weight's.
    """
    multiplied = [_multiplied(graph, weights, name) for graph, weights in traces]
    return None not in multiplied and any(multiplied)


def _multiplied(graph: fx.Graph, weights: set[fx.Node], name: str) -> bool | None:
    """Whether some value that is computed from the weight is a factor; None where data are written to the weight.

    A mask or a norm that is written to its `data` at each call is written to the draw's, which is what the call uses.
    """
    multiplied = False
    waiting = [node for node in graph.nodes if node.op == "get_attr" and node.target == name]
    itself, seen = set(waiting), set(waiting)
    while waiting:
        node = waiting.pop()
        for user in node.users:
            if node in itself and writes(user):
                if user.target is not getattr or not weights.issuperset(_descendants(user)):
                    return None
            elif _function_of(user) in _WITHOUT_GRADIENT:
                continue
            elif user in weights or _scaled_by_data(user, node, weights):
                if node in itself and _is_view(user):
                    itself.add(user)
                waiting += [user] if user not in seen else []
                seen.add(user)
                alone = weights.intersection(user.all_input_nodes) == {node}  # times a constant
                multiplied = multiplied or (alone and node_role(user, node) is Role.FACTOR)
            else:
                multiplied = multiplied or _is_product(user, node, weights)
    return multiplied


def _function_of(node: fx.Node) -> Any:
    call = call_of(node)
    return None if call is None else call.function


def _scaled_by_data(user: fx.Node, node: fx.Node, weights: set[fx.Node]) -> bool:
    """A weight times a factor of each example's own, as in a modulated convolution, and what is computed from that."""
    function, role = _function_of(user), node_role(user, node)
    if function is None or function in MULTIPLICATIONS or role in (Role.FORM, Role.ROWS):
        return False
    return node not in weights or role is Role.SCALED


def _is_product(user: fx.Node, node: fx.Node, weights: set[fx.Node]) -> bool:
    function, role = _function_of(user), node_role(user, node)
    if node not in weights:  # what it is multiplied by may be taken for data: only a place for weights tells
        return role is Role.FACTOR and only_for_weights(function)
    multiplies = (function in MULTIPLICATIONS and role is not Role.ADDED) or is_autograd_function(function)
    return multiplies or isinstance(function, torch._ops.OpOverloadPacket | torch._ops.OpOverload)


def _is_view(node: fx.Node) -> bool:
    return _function_of(node) in VIEWS or _function_of(node) in GATHERS or node.target is getattr


def _descendants(node: fx.Node) -> Iterator[fx.Node]:
    waiting, seen = [node], {node}
    while waiting:
        descendant = waiting.pop()
        yield descendant
        fresh = descendant.users.keys() - seen
        seen |= fresh
        waiting += fresh
