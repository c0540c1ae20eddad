"""Where a graph's weights go: through views of them, to each call that does anything else with one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from ..estimators.products import LinearProduct
from ..nn import product_readers as read
from ..nn.product_readers import Use
from ..nn.torch_functions import BODIES, CASTS, FUNCTIONS, MULTIPLICATIONS, VIEWS, Role, role
from .operators import Call, call_of


class Reached(NamedTuple):
    """A node that uses a weight, or a view of one.

    Attributes:
        user: the node.
        weight: the node that reads the weight.
        views: the views between them, in order.
        role: what the user does with it.
    """

    user: fx.Node
    weight: fx.Node
    views: tuple[fx.Node, ...]
    role: Role

    @property
    def given(self) -> fx.Node:
        """What the user takes: the weight or its last view."""
        return (self.weight, *self.views)[-1]


Judge = Callable[[fx.Node, fx.Node], Role]


def node_role(user: fx.Node, given: fx.Node) -> Role:
    """What a node does with one of its inputs. Rows that data select are not a view."""
    call = call_of(user)
    if call is None:
        return Role.OTHER
    if call.function in _GETITEM and any(isinstance(part, fx.Node) for part in _flat(call.args[1])):
        return Role.OTHER
    return role(*call, given)


def follow(graph: fx.Graph, weights: Iterable[fx.Node], judge: Judge = node_role) -> Iterator[Reached]:
    """Every use of these weights that is not a view, in the graph's order. `judge` says what is a view.

    A node that takes two of them, or one twice, does not multiply by a weight in the way that an estimator knows.
    """
    chains: dict[fx.Node, tuple[fx.Node, ...]] = {weight: (weight,) for weight in weights}
    for node in graph.nodes:
        roles = {given: judge(node, given) for given in node.all_input_nodes if given in chains}
        several = sum(its is not Role.FORM for its in roles.values()) > 1
        for given, its in roles.items():
            if its is Role.VIEW and not several:
                chains[node] = (*chains[given], node)
            else:
                weight, *views = chains[given]
                yield Reached(node, weight, tuple(views), Role.OTHER if several and its is not Role.FORM else its)


def form_of(reached: Reached, weight: Tensor) -> Tensor | None:
    """What the user takes, as a tensor on meta, for a weight of this form; None where data tell the sizes of a view."""
    form: Any = torch.empty_like(weight, device="meta")
    for before, view in zip((reached.weight, *reached.views), reached.views, strict=False):
        form = viewed(call_of(view), before, form)
    return form if isinstance(form, Tensor) else None


def viewed(call: Call | None, given: Any, form: Any) -> Any:
    """The result of a view of `given`, by its form on meta; None where that is not known."""
    assert call is not None
    if form is None or call.function in CASTS or call.function not in VIEWS:  # scaled, too, it keeps its shape
        return form
    args, kwargs = fx.node.map_aggregate((call.args, call.kwargs), lambda part: form if part is given else part)
    try:
        return call.function(*args, **kwargs)
    except (TypeError, ValueError, RuntimeError, IndexError):
        return None


def product_of(call: Call, given: Any, form: Tensor) -> Use | None:
    """The call as a product by `given`, of which only the form is known; other tensors are stand-ins on meta."""
    if call.function in BODIES:
        return Use(LinearProduct(), [])
    ranks, rank = {}, form.dim()
    if call.function is torch.tensordot:  # it names dimensions of the other tensor, which has as many or fewer
        rank = _MANY
    if call.function is torch.einsum:
        operands = read.einsum_operands(call.args[1:])
        sides = read.einsum_sides(call.args[0])
        ranks = dict(zip(operands, (len(side.replace("...", "")) for side in sides), strict=False))

    def stand_in(node: fx.Node) -> Any:
        return form if node is given else torch.empty((2,) * ranks.get(node, rank), device="meta")

    args, kwargs = fx.node.map_arg((call.args, call.kwargs), stand_in)
    return MULTIPLICATIONS[call.function].use(form, args, kwargs)


def fan_in(use: Use, form: Tensor) -> int:
    """How many elements of the weight one output of the product sums."""
    return use.product.fan_in(use.oriented(form).shape)


_MANY = 16
_GETITEM = (FUNCTIONS["getitem"], Tensor.__getitem__)


def _flat(index: Any) -> Iterator[Any]:
    for part in index if isinstance(index, list | tuple) else [index]:
        if isinstance(part, slice):
            yield from (part.start, part.stop, part.step)
        else:
            yield part
