"""Where a graph multiplies by a Parameter: in torch's functions, as torch.fx traces them, or in aten operators."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.parameter import Parameter

from ..nn.torch_functions import MULTIPLICATIONS
from .operators import RECURRENT, function_name, is_harmless, torch_call
from .part import PRODUCTS, VIEWS, Ref, Step

Place = tuple[str, str]  # a module's dotted name, and the name of its own Parameter

_AS_BILINEAR = ((1, 3), (0,), (1, 2), (2, 3))  # how torch decomposes F.bilinear
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
        return (str(each.key) for step in self.steps for each in _refs(step.args) if each.kind == "weight")


def _refs(given: Any) -> Iterator[Ref]:
    if isinstance(given, Ref):
        yield given
    elif isinstance(given, tuple):
        for each in given:
            yield from _refs(each)


@dataclass
class Found:
    """The products of a graph; why other matrices stay, or do unless `kernels` has them, by the Parameter's id."""

    calls: list[Call] = field(default_factory=list)
    problems: dict[int, str] = field(default_factory=dict)
    left: dict[int, str] = field(default_factory=dict)


def find(root: fx.GraphModule) -> Found:
    """The products of a graph with the Parameters of two or more dimensions that it reads by name."""
    read: dict[fx.Node, Parameter] = {}
    found, products = Found(), []
    for node in root.graph.nodes:
        if node.op == "get_attr":
            value = attribute(root, str(node.target))
            if isinstance(value, Parameter) and value.dim() > 1:
                read[node] = value
            continue
        taken = [each for each in node.all_input_nodes if each in read]
        if not taken:
            continue
        name = function_name(node)
        if name in VIEWS and len(taken) == 1:
            read[node] = read[taken[0]]
        elif name in PRODUCTS and len(taken) == 1:
            products.append((node, name, taken[0]))
        elif is_harmless(node):
            found.left.update({id(read[each]): why for each in taken if (why := _left(node))})
        else:
            what = getattr(node.target, "__name__", str(node.target))
            found.problems.update(
                {id(read[each]): f"the program uses it in {what} (node {node.name})" for each in taken}
            )
    for node, name, weight in products:
        _enter(found, root, node, name, weight, read[weight])
    return found


def _left(node: fx.Node) -> str:
    name = getattr(node.target, "_opname", str(node.target))
    if name in RECURRENT:
        return f"the program runs it as {name} in a form that no layer of torch has (node {node.name})"
    return _LOOKED_UP if "embedding" in name else ""


def _enter(found: Found, root: fx.GraphModule, node: fx.Node, name: str, weight: fx.Node, value: Parameter) -> None:
    if id(value) in found.problems:
        return
    owner, leaf = place_of(root, node, weight)
    reader = _Reader(root, owner, leaf, value)
    reader.read(node)
    size = None if reader.strange else _fan_in(name, reader.steps[-1], reader.shapes)
    if size is None:
        found.problems[id(value)] = (
            f"the program multiplies by it in a {name} of a form that is not known ({node.name})"
        )
        # under its other names too: one weight would be noisy in some products and bare in others
        found.calls = [each for each in found.calls if attribute(root, each.path) is not value]
        return
    found.calls.append(Call(node, owner, leaf, tuple(reader.steps), tuple(reader.inputs), size))


class _Reader:
    """Turns a product's node and the views before it into steps of the module that owns the weight."""

    def __init__(self, root: fx.GraphModule, owner: str, leaf: str, value: Parameter) -> None:
        self.root, self.owner, self.leaf, self.value = root, owner, leaf, value
        self.steps: list[Step] = []
        self.inputs: list[fx.Node] = []
        self.spread: set[Ref] = set()  # views of the weight that repeat it for each row of a batch
        self.strange = False
        self.refs: dict[fx.Node, Ref] = {}
        self.shapes: dict[Ref, Tensor] = {Ref("weight", leaf): torch.empty_like(value, device="meta")}

    def read(self, node: fx.Node) -> Ref:
        name, args, kwargs = torch_call(node)
        if name == "addmm":
            self._ref(args[1])  # what is multiplied comes first among the inputs, before a foreign bias
        given, named = fx.node.map_arg((tuple(args), dict(kwargs)), self._ref)
        self.steps.append(Step(name, _plain(given), tuple((key, _plain(each)) for key, each in named.items())))
        ref = Ref("step", len(self.steps) - 1)
        if name in VIEWS:
            self.shapes[ref] = self._shape(ref, name, given, named)
        return ref

    def _shape(self, ref: Ref, name: str, given: Any, named: Any) -> Tensor:
        source = given[0]
        if name == "expand" or source in self.spread:
            self.spread.add(ref)
            self.strange |= not _spreads(name, self.shapes[source].shape, given[1:])
            return self.shapes[source]
        resolved = fx.node.map_aggregate(
            (given, named), lambda each: self.shapes.get(each, each) if isinstance(each, Ref) else each
        )
        shape: Tensor = VIEWS[name](*resolved[0], **resolved[1])
        return shape

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
        if node.op != "get_attr" and self._views_the_weight(node):
            return self.read(node)
        self.inputs.append(node)
        return Ref("input", len(self.inputs) - 1)

    def _views_the_weight(self, node: fx.Node) -> bool:
        while node.op != "get_attr":
            if function_name(node) not in VIEWS or not node.all_input_nodes:
                return False
            node = node.all_input_nodes[0]
        return attribute(self.root, str(node.target)) is self.value


def _spreads(name: str, shape: torch.Size, rest: Any) -> bool:
    """Whether a view does nothing with a weight but repeat it along new dimensions, which come first."""
    if name in ("clone", "contiguous"):
        return True
    sizes = list(rest[0] if rest and isinstance(rest[0], list | tuple) else rest)
    kept = sizes[-2:] if len(shape) == 2 else sizes
    return name in ("expand", "view", "reshape") and kept == list(shape)


def _plain(value: Any) -> Any:
    """fx's immutable lists and dicts as tuples, which pickle and hash."""
    if isinstance(value, list | tuple):
        return tuple(_plain(each) for each in value)
    return (
        slice(*(_plain(each) for each in (value.start, value.stop, value.step))) if isinstance(value, slice) else value
    )


def place_of(root: fx.GraphModule, node: fx.Node, weight: fx.Node) -> Place:
    """Where the Parameter of a node is: in the module that the product was called in, or where the graph reads it."""
    while weight.op != "get_attr":
        weight = weight.all_input_nodes[0]
    value, where = attribute(root, str(weight.target)), module_stack(node)
    module = attribute(root, where[-1][0]) if where else None
    if isinstance(module, nn.Module):
        for leaf, each in module._parameters.items():
            if each is value:
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
    found: Any = root
    for part in path.split(".") if path else []:
        found = getattr(found, part, None)
    return found


def _fan_in(name: str, step: Step, shapes: dict[Ref, Tensor]) -> int | None:
    """How many weights enter one output; None where the product is not one that the estimators know."""
    at = [place for place, each in enumerate(step.args) if isinstance(each, Ref) and each in shapes]
    if len(at) != 1:
        return None
    shape = shapes[step.args[at[0]]].shape
    if name == "einsum":
        return _einsum_fan_in(step, shape, at[0])
    if name == "_trilinear" and step.args[3:7] != _AS_BILINEAR:
        return None
    if name in ("matmul", "mm", "bmm", "_grouped_mm"):
        return shape[-2] if at == [1] else shape[-1] if len(shape) > 1 else None
    if name == "addmm":
        return shape[-2] if at == [2] and not step.kwargs else None
    if at != [2 if name == "bilinear" else 1]:
        return None
    if name.startswith("conv_transpose"):
        groups = step.args[6] if len(step.args) > 6 else dict(step.kwargs).get("groups", 1)
        return int(shape[0] // groups * prod(shape[2:]))
    return prod(shape[1:])


def _einsum_fan_in(step: Step, shape: torch.Size, at: int) -> int | None:
    equation, *operands = step.args
    sides, arrow, out = equation.replace(" ", "").partition("->")
    labels = sides.split(",")
    if not arrow or len(labels) != len(operands):
        return None
    known = torch.empty(shape, device="meta")
    others = [torch.empty((2,) * len(each.replace("...", "")), device="meta") for each in labels]
    given = [known if place + 1 == at else other for place, other in enumerate(others)]
    if MULTIPLICATIONS[torch.einsum](known, equation, *given) is None:
        return None
    return prod(size for label, size in zip(labels[at - 1], shape, strict=True) if label not in out)
