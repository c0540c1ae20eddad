"""Programs: models that are a graph of operators, from torch.export or torch.fx, with their weights.

`layered` turns each product of a graph with a Parameter into the call of a layer that stands where the Parameter stood:
a plain torch layer where the product is just that layer's, a `Part` otherwise. All else (plan, convert, revert) then
treats the program as any other model.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.parameter import Parameter

from ..errors import UsageError
from ..nn.part import ROOT, Holder, Part, Ref
from .batch import Batch, batch_of, layout
from .sites import Call, Found, find, module_stack
from .text import build, pruned


class Program(fx.GraphModule):
    """A model that was exported: its graph, its modules under the names that they had, its weights in them.

    It computes in the mode, train or eval, that it was exported in: `train()` and `eval()` only set the flag.
    """

    _text: str | None = None

    def train(self, mode: bool = True) -> Program:
        """Set the flag `training` on all modules; what the graph computes stays as it was exported."""
        for module in self.modules():
            module.training = mode
        return self

    def eval(self) -> Program:
        """As `train(False)`."""
        return self.train(False)

    def __deepcopy__(self, memo: dict[int, Any]) -> Program:
        copied = Program.__new__(type(self))
        memo[id(self)] = copied
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch's own, about copying its structures of inputs
            copied.__dict__.update(copy.deepcopy(self.__dict__, memo))
        copied._graph.owning_module = copied
        copied.recompile()
        return copied

    def __reduce__(self) -> Any:
        if self._text is None:
            raise UsageError("a torch.fx GraphModule cannot be pickled after conversion: save its state_dict()")
        from .state import rebuilt, state_of

        return rebuilt, (self._text, state_of(self))


def from_text(text: str, tensors: Mapping[str, Tensor], constants: Mapping[str, Tensor]) -> Program:
    """The program of a pruned text (see `exported`), around these tensors.

    Raises:
        FileRefusedError: the text holds what could run code, or what torch cannot rebuild.
    """
    return _unlifted(build(text, tensors, constants), text)


def from_exported(program: torch.export.ExportedProgram) -> Program:
    """The program of torch.export, around its own Parameters."""
    from torch._export.serde.serialize import serialize

    try:
        written = serialize(program, serialize_state_dict=False, serialize_constants=False).exported_program
        text: str | None = pruned(written)
    except Exception:
        # torch writes no program with objects of foreign kinds; it converts all the same and cannot be saved
        text = None
    return _unlifted(program, text)


def _unlifted(program: torch.export.ExportedProgram, text: str | None) -> Program:
    plain = program.module(check_guards=False)
    made = Program(plain, plain.graph, "Program")
    made._text = text
    _share_again(made)
    layered(made)
    for node in made.graph.nodes:
        node.meta.clear()
    return made.eval()


def _share_again(made: nn.Module) -> None:
    """Parameters that are one storage under several names, as tied weights are after loading, become one again."""
    first: dict[Any, Parameter] = {}
    for module in made.modules():
        for name, each in module._parameters.items():
            if each is not None:
                key = (each.data_ptr(), each.shape, each.stride()) if each.numel() and not each.is_meta else id(each)
                module._parameters[name] = first.setdefault(key, each)


def prepared(model: Any) -> Any:
    """The model as plan and convert treat it; a program or a graph with products of its own shares its Parameters.

    An exported program becomes a Program, a torch.fx graph that multiplies by Parameters itself gets layers for that.
    """
    if is_exported(model):
        return from_exported(model)
    if not has_products(model):
        return model
    shared = sharing(model)
    layered(shared)
    return shared


def is_exported(model: object) -> bool:
    """Whether it is an exported program, as torch.export.export returns. By name: importing torch.export takes time."""
    return f"{type(model).__module__}.{type(model).__qualname__}" == "torch.export.exported_program.ExportedProgram"


def has_products(model: nn.Module) -> bool:
    """Whether the model is a graph that multiplies by Parameters itself, so that `layered` has something to do."""
    return isinstance(model, fx.GraphModule) and bool(find(model).calls)


def sharing(model: fx.GraphModule) -> fx.GraphModule:
    """Another GraphModule of the same graph, layers and Parameters: what `layered` can change in place of the model."""
    return fx.GraphModule(model, copy.deepcopy(model.graph), type(model).__name__)


def layered(root: fx.GraphModule) -> None:
    """Make every product with a Parameter, in place, the call of a layer at the Parameter's place."""
    found, batch = find(root), batch_of(root.graph)
    if not found.calls and not isinstance(root, Program):
        return
    kinds = _kinds(root)
    targets: dict[fx.Node, tuple[str, int]] = {}
    for owner in dict.fromkeys(_owners(root, found)):
        calls = [call for call in found.calls if call.owner == owner]
        targets |= _replace(root, owner, kinds.get(owner, ""), calls, found, batch)
    new: dict[fx.Node, fx.Node] = {}
    examples = _size_of(batch, root.graph)
    for call in found.calls:
        if call.node in targets:
            size = examples if _layout(call, batch) < 0 else None
            new[call.node] = _reroute(root, call, *targets[call.node], new, size)
    multiplied = {call.weight for call in found.calls if not call.owner}
    root.exported_kind = kinds.get("", "GraphModule")  # type: ignore[assignment]
    root.exported_problems = dict(_problems(root, multiplied, found))  # type: ignore[assignment]
    root.graph.eliminate_dead_code()
    root.recompile()


def _size_of(batch: Batch | None, graph: fx.Graph) -> fx.Node | None:
    """A node of the batch's size, which dead code takes away again where no product asks for it."""
    if batch is None:
        return None
    *_, last = (node for node in graph.nodes if node.op == "placeholder")
    with graph.inserting_after(last):
        return graph.call_function(torch.ops.aten.sym_size.int, (batch.input, batch.dim))


def _owners(root: fx.GraphModule, found: Found) -> Iterator[str]:
    """The modules to replace: those that have products, and those that are nothing but holders of Parameters."""
    for name, module in root.named_modules(remove_duplicate=False):
        holds = type(module) is nn.Module and any(True for _ in module.parameters(recurse=False))
        if holds or any(call.owner == name for call in found.calls):
            yield name


def _kinds(root: fx.GraphModule) -> dict[str, str]:
    """The class that each module had, as far as torch.export noted it."""
    return dict(entry for node in root.graph.nodes for entry in module_stack(node))


def _replace(
    root: fx.GraphModule, owner: str, kind: str, calls: list[Call], found: Found, batch: Batch | None
) -> dict[fx.Node, tuple[str, int]]:
    """Put a layer in the place of a module. Which products become calls of it: node -> its name, which of its uses."""
    module = root.get_submodule(owner)
    if type(module) is not nn.Module and owner:
        problem = f"the program uses it beside calling {owner!r}"
        found.problems.update({id(module._parameters[call.weight]): problem for call in calls})
        return {}
    layer = _plain_layer(module, calls, kind, batch) if owner else None
    if layer is None:
        layer = _part(module, calls, kind or type(module).__name__, found, batch)
    layer.training = root.training
    if not owner and calls:
        root.add_module(ROOT, layer)
        root.register_state_dict_post_hook(hide_root_products)  # type: ignore[no-untyped-call]
        root.register_load_state_dict_pre_hook(find_root_products)  # type: ignore[no-untyped-call]
    elif owner:
        _adopt(layer, module)
        parent, _, leaf = owner.rpartition(".")
        root.get_submodule(parent)._modules[leaf] = layer
    return {call.node: (owner or ROOT, which) for which, call in enumerate(calls)}


def hide_root_products(root: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    """A hook on the state_dict of a root with products of its own: the names are those that the root had."""
    for key in [key for key in state if key.startswith(f"{prefix}{ROOT}.")]:
        state[prefix + key.removeprefix(f"{prefix}{ROOT}.")] = state.pop(key)


def find_root_products(root: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """The hook that takes `hide_root_products` back on loading."""
    own = root.get_submodule(ROOT)
    for leaf in (*own._parameters, *own._buffers):
        if f"{prefix}{leaf}" in state:
            value = state[f"{prefix}{leaf}"] if leaf in root._parameters else state.pop(f"{prefix}{leaf}")
            state[f"{prefix}{ROOT}.{leaf}"] = value


def _adopt(layer: nn.Module, module: nn.Module) -> None:
    """Take over the very Parameters, buffers and children."""
    absent = {name: None for name, each in layer._parameters.items() if each is None}
    layer._parameters = {**module._parameters, **absent}
    layer._buffers, layer._non_persistent_buffers_set = module._buffers, module._non_persistent_buffers_set
    layer._modules = module._modules


def _part(module: nn.Module, calls: list[Call], kind: str, found: Found, batch: Batch | None) -> Holder:
    if not calls:
        holder = Holder(kind)
        holder.exported_problems = dict(_problems(module, set(), found))
        return holder
    part = Part(kind)
    part.uses = tuple(call.steps for call in calls)
    part.weights = tuple({call.weight: call.fan_in for call in reversed(calls)}.items())
    if not isinstance(module, fx.GraphModule):  # the root has a row of its own
        part.exported_problems = dict(_problems(module, set(dict(part.weights)), found))
    part.layouts = tuple(_layout(call, batch) for call in calls)
    for name in dict.fromkeys(name for call in calls for name in call.reads()):
        part._parameters[name] = module._parameters[name]
    return part


def _problems(module: nn.Module, multiplied: set[str], found: Found) -> Iterator[tuple[str, str]]:
    for name, each in module._parameters.items():
        if each is not None and each.dim() > 1 and name not in multiplied:
            yield name, found.problems.get(id(each)) or found.looked_up.get(id(each), "the program never uses it")


def _plain_layer(module: nn.Module, calls: list[Call], kind: str, batch: Batch | None) -> nn.Module | None:
    """The torch layer that all the calls are calls of, or None."""
    steps = {call.steps for call in calls}
    own = {name for name, each in module._parameters.items() if each is not None}
    if len(steps) != 1 or module._modules or module._buffers or "weight" not in own or own - {"weight", "bias"}:
        return None
    layouts = {_layout(call, batch) for call in calls}
    if len(layouts) != 1 or min(layouts) < 0:
        return None
    from .layers import torch_layer

    layer = torch_layer(next(iter(steps)), module, "bias" in own)
    if layer is not None:
        layer.exported_batch_dim = layouts.pop()  # type: ignore[assignment]
        if kind and kind != f"{type(layer).__module__}.{type(layer).__qualname__}":
            layer.exported_kind = kind  # type: ignore[assignment]
    return layer


def _layout(call: Call, batch: Batch | None) -> int:
    """Of the first input, unless the product is one that looks at its dimensions by name."""
    product = call.steps[-1]
    from_left = product.function in ("matmul", "mm") and product.args[0] != Ref("input", 0)
    if not call.inputs or from_left or product.function in ("einsum", "bmm", "bilinear"):
        return 0
    found = layout(call.inputs[0], batch)
    return 0 if product.function.startswith("conv") else found  # a convolution takes no dimension more


def _reroute(
    root: fx.GraphModule, call: Call, owner: str, which: int, new: dict[fx.Node, fx.Node], examples: fx.Node | None
) -> fx.Node:
    """Put a call of the layer in the place of the product's node."""
    args: tuple[Any, ...] = tuple(new.get(each, each) for each in call.inputs)
    if isinstance(root.get_submodule(owner), Part):
        args = (which, examples, *args)
    with root.graph.inserting_before(call.node):
        node = root.graph.create_node("call_module", owner, args)
    node.meta.update(call.node.meta)
    call.node.replace_all_uses_with(node)
    root.graph.erase_node(call.node)
    return node
