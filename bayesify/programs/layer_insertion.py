"""Graphs with layers: each product of a graph with a Parameter becomes the call of a layer at the Parameter's place.

A plain torch layer where the product is just that layer's, a `Part` otherwise. All else (plan, convert, revert) then
treats the graph as any other model.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import fx, nn

from .batch_dimension import Batch, batch_of, layout
from .fused_operators import input_of, kernels, restore
from .graph_module import whole
from .graph_products import Call, GraphProducts, find, module_stack
from .insertion import add_root_products, note_root
from .part import ROOT, Holder, Part, Ref, noisy
from .torch_layers import put, torch_layer


def layered(root: fx.GraphModule, *, always: bool = False) -> None:
    """Make every product with a Parameter, in place, the call of a layer at the Parameter's place.

    A graph without products stays as it is, unless `always`: a program's modules are to tell why they stay.
    """
    whole(root)
    products = find(root)
    single = kernels(root, products)
    if not (always or products.calls or single):
        return
    kinds, batch = _kinds(root), batch_of(root.graph)
    products = _restored(root, single, kinds, batch)
    targets: dict[fx.Node, tuple[str, int]] = {}
    for owner in dict.fromkeys(_owners(root, products)):
        calls = [call for call in products.calls if call.owner == owner]
        targets |= _replace(root, owner, kinds.get(owner, ""), calls, products, batch)
    new: dict[fx.Node, fx.Node] = {}
    examples = _size_of(batch, root.graph)
    for call in products.calls:
        if call.node in targets:
            size = examples if _layout(call, batch) < 0 else None
            new[call.node] = _reroute(root, call, *targets[call.node], new, size)
    multiplied = {call.weight for call in products.calls if not call.owner}
    note_root(root, kinds.get("", "GraphModule"), dict(_problems(root, multiplied, products)))
    root.graph.eliminate_dead_code()
    root.recompile()


def has_products(root: fx.GraphModule) -> bool:
    """Whether the graph multiplies by Parameters itself, so that `layered` has something to do."""
    products = find(root)
    return bool(products.calls or kernels(root, products))


def _restored(
    root: fx.GraphModule, single: dict[str, list[fx.Node]], kinds: dict[str, str], batch: Batch | None
) -> GraphProducts:
    """Put the layers that are one operator in place; what the graph multiplies beside."""
    folded: dict[int, str] = {}
    for owner, calls in single.items():
        layouts = {layout(input_of(node), batch) for node in calls}
        if min(layouts) < 0 or len(layouts) > 1:
            why = "its examples are folded with others, or in different dimensions"
            folded |= {id(parameter): why for parameter in root.get_submodule(owner).parameters()}
            continue
        layer = restore(root, owner, calls)
        if not isinstance(layer, nn.RNNBase):  # those know
            layer.exported_batch_dim = layouts.pop()  # type: ignore[assignment]
        _note_kind(layer, kinds.get(owner, ""))
    products = find(root)
    products.left |= folded
    return products


def _note_kind(layer: nn.Module, kind: str) -> None:
    if kind and kind != f"{type(layer).__module__}.{type(layer).__qualname__}":
        layer.exported_kind = kind  # type: ignore[assignment]


def _size_of(batch: Batch | None, graph: fx.Graph) -> fx.Node | None:
    """A node of the batch's size, which dead code takes away again where no product asks for it."""
    if batch is None:
        return None
    *_, last = (node for node in graph.nodes if node.op == "placeholder")
    with graph.inserting_after(last):
        return graph.call_function(torch.ops.aten.sym_size.int, (batch.input, batch.dim))


def _owners(root: fx.GraphModule, products: GraphProducts) -> Iterator[str]:
    """The modules to replace: those that have products, and those that are nothing but holders of Parameters."""
    for name, module in root.named_modules(remove_duplicate=False):
        holds = type(module) is nn.Module and any(True for _ in module.parameters(recurse=False))
        if holds or any(call.owner == name for call in products.calls):
            yield name


def _kinds(root: fx.GraphModule) -> dict[str, str]:
    """The class that each module had, as far as torch.export noted it."""
    return dict(entry for node in root.graph.nodes for entry in module_stack(node))


def _replace(
    root: fx.GraphModule, owner: str, kind: str, calls: list[Call], products: GraphProducts, batch: Batch | None
) -> dict[fx.Node, tuple[str, int]]:
    """Put a layer in the place of a module. Which products become calls of it: node -> its name, which of its uses."""
    module = root.get_submodule(owner)
    if type(module) is not nn.Module and owner:
        problem = f"the program uses it beside calling {owner!r}"
        products.problems.update({id(module._parameters[call.weight]): problem for call in calls})
        return {}
    layer = _plain_layer(module, calls, kind, batch) if owner else None
    if layer is None:
        layer = _part(module, calls, kind or type(module).__name__, products, batch)
    layer.training = root.training
    if not owner and calls:
        add_root_products(root, layer, tuple(layer._parameters))
    elif owner:
        put(root, owner, layer)
    return {call.node: (owner or ROOT, which) for which, call in enumerate(calls)}


def _part(module: nn.Module, calls: list[Call], kind: str, products: GraphProducts, batch: Batch | None) -> Holder:
    if not calls:
        holder = Holder(kind)
        holder.exported_problems = dict(_problems(module, set(), products))
        return holder
    part = Part(kind)
    part.uses = tuple(call.steps for call in calls)
    part.noisy_uses = tuple(noisy(call.steps) for call in calls)
    part.weights = tuple({call.weight: call.fan_in for call in reversed(calls)}.items())
    if not isinstance(module, fx.GraphModule):  # the root has a row of its own
        part.exported_problems = dict(_problems(module, set(dict(part.weights)), products))
    part.layouts = tuple(_layout(call, batch) for call in calls)
    for name in dict.fromkeys(name for call in calls for name in call.reads()):
        part._parameters[name] = module._parameters[name]
    return part


def _problems(module: nn.Module, multiplied: set[str], products: GraphProducts) -> Iterator[tuple[str, str]]:
    for name, parameter in module._parameters.items():
        if parameter is not None and parameter.dim() > 1 and name not in multiplied:
            key = id(parameter)
            yield name, products.problems.get(key) or products.left.get(key, "the program never uses it")


def _plain_layer(module: nn.Module, calls: list[Call], kind: str, batch: Batch | None) -> nn.Module | None:
    """The torch layer that all the calls are calls of, or None."""
    steps = calls[0].steps if calls else ()
    own = {name for name, parameter in module._parameters.items() if parameter is not None}
    if not steps or any(call.steps != steps for call in calls):
        return None
    if module._modules or module._buffers or "weight" not in own or own - {"weight", "bias"}:
        return None
    layouts = {_layout(call, batch) for call in calls}
    if len(layouts) != 1 or min(layouts) < 0:
        return None
    layer = torch_layer(steps, module, "bias" in own)
    if layer is not None:
        layer.exported_batch_dim = layouts.pop()  # type: ignore[assignment]
        _note_kind(layer, kind)
    return layer


_BY_NAME = (
    "einsum", "bmm", "baddbmm", "mv", "inner", "tensordot", "bilinear", "_grouped_mm", "grouped_mm",
)  # fmt: skip


def _layout(call: Call, batch: Batch | None) -> int:
    """Of the first input, unless the product is one that looks at its dimensions by name."""
    product = noisy(call.steps)[-1]
    from_left = product.function in ("matmul", "mm") and product.args[0] != Ref("input", 0)
    if not call.inputs or from_left or product.function in _BY_NAME:
        return 0
    dim = layout(call.inputs[0], batch)
    return 0 if product.function.startswith("conv") else dim  # a convolution takes no dimension more


def _reroute(
    root: fx.GraphModule, call: Call, owner: str, which: int, new: dict[fx.Node, fx.Node], examples: fx.Node | None
) -> fx.Node:
    """Put a call of the layer in the place of the product's node."""
    args: tuple[Any, ...] = tuple(new.get(node, node) for node in call.inputs)
    if isinstance(root.get_submodule(owner), Part):
        args = (which, examples, *args)
    with root.graph.inserting_before(call.node):
        node = root.graph.create_node("call_module", owner, args)
    node.meta.update(call.node.meta)
    call.node.replace_all_uses_with(node)
    root.graph.erase_node(call.node)
    return node
