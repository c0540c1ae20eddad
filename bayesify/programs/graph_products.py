"""Where a graph multiplies by a Parameter: in torch's functions, as torch.fx traces them, or in aten operators."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn
from torch.nn.parameter import Parameter

from ..nn.torch_functions import SPREADS, Role
from .operators import Call as TorchCall
from .operators import call_of, is_recurrent
from .part import Ref, Step
from .weight_flow import Reached, fan_in, follow, node_role, product_of, viewed

Place = tuple[str, str]  # a module's dotted name, and the name of its own Parameter

_LOOKED_UP = "the program looks rows up in it instead of multiplying: it has no variational form here"


@dataclass(frozen=True)
class Call:
    """One product with a Parameter.

    Attributes:
        node: the product's node.
        owner, weight: the module that it is the product of, and the name of its Parameter.
        steps: the views of the weight that it takes, then the product itself.
        inputs: the nodes of what it is multiplied by, and of whatever else comes from outside the owner.
        fan_in: how many weights enter one output.
    """

    node: fx.Node
    owner: str
    weight: str
    steps: tuple[Step, ...]
    inputs: tuple[fx.Node, ...]
    fan_in: int

    @property
    def path(self) -> str:
        """The Parameter's dotted name."""
        return f"{self.owner}.{self.weight}".lstrip(".")

    def reads(self) -> Iterator[str]:
        """The names of the owner's Parameters that it takes."""
        return (str(ref.key) for step in self.steps for ref in _refs(step.args) if ref.kind == "weight")


def _refs(given: Any) -> Iterator[Ref]:
    if isinstance(given, Ref):
        yield given
    elif isinstance(given, tuple):
        for part in given:
            yield from _refs(part)


@dataclass
class GraphProducts:
    """The products of a graph; why other matrices stay, or do unless `kernels` has them, by the Parameter's id."""

    calls: list[Call] = field(default_factory=list)
    problems: dict[int, str] = field(default_factory=dict)
    left: dict[int, str] = field(default_factory=dict)


def find(root: fx.GraphModule) -> GraphProducts:
    """The products of a graph with the Parameters of two or more dimensions that it reads by name."""
    nodes = [(node, attribute(root, str(node.target))) for node in root.graph.nodes if node.op == "get_attr"]
    read = {node: value for node, value in nodes if isinstance(value, Parameter) and value.dim() > 1}
    products, factors = GraphProducts(), []
    for reached in follow(root.graph, read, _role):
        weight, user = read[reached.weight], reached.user
        if reached.role is Role.FACTOR:
            factors.append(reached)
        elif is_recurrent(user):
            what = f"the program runs it as {getattr(user.target, '_opname', '')} in a form that no layer of torch has"
            products.left[id(weight)] = f"{what} (node {user.name})"
        elif reached.role is Role.ROWS:
            products.left[id(weight)] = _LOOKED_UP
        elif reached.role is not Role.FORM:
            what = getattr(user.target, "__name__", str(user.target))
            products.problems[id(weight)] = f"the program uses it in {what} (node {user.name})"
    for reached in factors:
        _enter(products, root, reached, read[reached.weight])
    return products


def _role(user: fx.Node, given: fx.Node) -> Role:
    """As the function says, of those that a step may call; a weight may be repeated for each row of a batch."""
    call, role = call_of(user), node_role(user, given)
    if call is not None and call.function in SPREADS and call.args[0] is given:
        return Role.VIEW
    callable_by_steps = role not in (Role.VIEW, Role.FACTOR) or (call is not None and call.name is not None)
    return role if callable_by_steps else Role.OTHER


def _enter(products: GraphProducts, root: fx.GraphModule, reached: Reached, value: Parameter) -> None:
    if id(value) in products.problems:
        return
    node, call = reached.user, call_of(reached.user)
    assert call is not None
    owner, leaf = place_of(root, node, reached.weight)
    reader = _Reader(root, owner, leaf, value, reached)
    reader.read(node)
    form = None if reader.strange else reader.form
    use = None if form is None else product_of(call, reached.given, form)
    if use is None:
        products.problems[id(value)] = (
            f"the program multiplies by it in a {call.name} of a form that is not known ({node.name})"
        )
        # under its other names too: one weight would be noisy in some products and bare in others
        products.calls = [call for call in products.calls if attribute(root, call.path) is not value]
        return
    assert form is not None
    products.calls.append(Call(node, owner, leaf, tuple(reader.steps), tuple(reader.inputs), fan_in(use, form)))


class _Reader:
    """Turns a product's node and the views before it into steps of the module that owns the weight.

    Attributes:
        form: the weight as the product takes it, on meta, before it is repeated for each row of a batch; None where
            data tell the sizes of a view.
        strange: whether a view does more to a weight that was repeated than it does to that repetition.
    """

    def __init__(self, root: fx.GraphModule, owner: str, leaf: str, value: Parameter, reached: Reached) -> None:
        self.root, self.owner, self.leaf, self.value = root, owner, leaf, value
        self.before = dict(zip(reached.views, (reached.weight, *reached.views), strict=False))
        self.steps: list[Step] = []
        self.inputs: list[fx.Node] = []
        self.form: Any = torch.empty_like(value, device="meta")
        self.repeated = self.strange = False
        self.refs: dict[fx.Node, Ref] = {}

    def read(self, node: fx.Node) -> Ref:
        """Enter a product or a view, and before it whatever views it takes."""
        call = call_of(node)
        assert call is not None
        if call.name in ("addmm", "baddbmm"):
            self._ref(call.args[1])  # what is multiplied comes first among the inputs, before a foreign bias
        given, named = fx.node.map_arg((tuple(call.args), dict(call.kwargs)), self._ref)
        options = tuple((key, _plain(part)) for key, part in named.items())
        self.steps.append(Step(str(call.name), _plain(given), options))
        if node in self.before:
            self._view(call, self.before[node])
        return Ref("step", len(self.steps) - 1)

    def _view(self, call: TorchCall, before: fx.Node) -> None:
        if call.name == "expand" or self.repeated:
            self.repeated = True
            self.strange |= not _repeats(str(call.name), self.form.shape, call.args[1:])
        else:
            self.form = viewed(call, before, self.form)

    def _ref(self, node: fx.Node) -> Any:
        if node not in self.refs:
            self.refs[node] = self._new_ref(node)
        return self.refs[node]

    def _new_ref(self, node: fx.Node) -> Ref:
        value = attribute(self.root, str(node.target)) if node.op == "get_attr" else None
        if value is self.value:
            return Ref("weight", self.leaf)
        owner, _, leaf = str(node.target).rpartition(".")
        if isinstance(value, Parameter) and owner == self.owner:
            return Ref("weight", leaf)
        if node in self.before:
            return self.read(node)
        self.inputs.append(node)
        return Ref("input", len(self.inputs) - 1)


def _repeats(name: str, shape: torch.Size, rest: Any) -> bool:
    """Whether a view does nothing with a weight but repeat it along new dimensions, which come first."""
    if name in ("clone", "contiguous"):
        return True
    sizes = list(rest[0] if rest and isinstance(rest[0], list | tuple) else rest)
    kept = sizes[-2:] if len(shape) == 2 else sizes
    return name in ("expand", "view", "reshape") and kept == list(shape)


def _plain(value: Any) -> Any:
    """fx's immutable lists and dicts as tuples, which pickle and hash."""
    if isinstance(value, list | tuple):
        return tuple(_plain(part) for part in value)
    if isinstance(value, slice):
        return slice(_plain(value.start), _plain(value.stop), _plain(value.step))
    return value


def place_of(root: fx.GraphModule, node: fx.Node, weight: fx.Node) -> Place:
    """Where the Parameter of a node is: in the module that the product was called in, or where the graph reads it."""
    while weight.op != "get_attr":
        weight = weight.all_input_nodes[0]
    value, where = attribute(root, str(weight.target)), module_stack(node)
    module = attribute(root, where[-1][0]) if where else None
    if isinstance(module, nn.Module):
        for leaf, parameter in module._parameters.items():
            if parameter is value:
                return where[-1][0], leaf
    owner, _, leaf = str(weight.target).rpartition(".")
    return owner, leaf


def module_stack(node: fx.Node) -> list[tuple[str, str]]:
    """(dotted name, dotted class) of the modules around a node, outermost first, as torch.export noted them."""
    stack = (node.meta.get("nn_module_stack") or {}).values()
    return [
        (path.partition("@")[0], kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}")
        for path, kind in stack
    ]


def attribute(root: Any, path: str) -> Any:
    """What stands in the graph's module under a dotted name, or None."""
    thing: Any = root
    for part in path.split(".") if path else []:
        thing = getattr(thing, part, None)
    return thing
