"""Runs of a model with example inputs that leave no trace, and what its layers are called with meanwhile."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.rnn import PackedSequence
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from ...errors import UsageError
from ...estimators.generators import borrows
from ...nn.layer_kinds import example_dims
from ...nn.parametrized_weights import computed_tensors, kind_before
from ...nn.registry import plain_classes
from ...nn.torch_functions import BODIES, MULTIPLICATIONS, Role, role
from ...nn.user_code import user_code
from ..copied_functions import deep_copy
from ..side_effects import same_randomness
from .example_inputs import Example

OUTPUT = "the output"  # among the names of layers: the model's first output tensor


@dataclass(frozen=True)
class Seen:
    """The tensor that one call of a layer multiplies, and its dimensions that may hold examples.

    None where the layer itself knows where they are.
    """

    x: Tensor
    dims: tuple[int, ...] | None


@dataclass
class Calls:
    """What the layers were called with in one run, by their names.

    Attributes:
        of: their calls.
        inside: the layers whose forwards run now.
        outside: where code multiplies by a layer's weight without calling it.
    """

    of: dict[str, list[Seen]] = field(default_factory=dict)
    inside: list[str] = field(default_factory=list)
    outside: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, x: Tensor, dims: tuple[int, ...] | None) -> None:
        """Enter one call."""
        self.of.setdefault(name, []).append(Seen(x.detach(), dims))


def run(model: nn.Module, layers: Mapping[str, nn.Module], example: Example) -> tuple[Calls, Any]:
    """One forward with the example, by a twin of the model: the calls of the layers, and the output.

    Raises:
        UsageError: the model fails with these inputs.
    """
    calls, (model, layers) = Calls(), _twins(model, layers)
    with ExitStack() as stack:
        for name, layer in layers.items():
            if kind_before(layer) in plain_classes():
                enter, leave = _enter(calls, name), _leave(calls)
                stack.callback(layer.register_forward_pre_hook(enter, with_kwargs=True).remove)
                stack.callback(layer.register_forward_hook(leave, always_call=True).remove)
        stack.enter_context(uses := _Uses(calls, layers, _held_by_others(model, layers)))
        stack.callback(uses.restore)
        _seed()
        try:
            output = example.call(model)
        except Exception as error:
            first = (str(error).strip().splitlines() or ["no message"])[0]
            raise UsageError(
                f"{type(model).__name__} fails with these example_inputs: {type(error).__name__}: {first}"
            ) from error
    result = next((tensor for tensor in tensors_in(output) if tensor.dim()), None)
    if result is not None:
        calls.add(OUTPUT, result, (0,))
    return calls, output


def _twins(model: nn.Module, layers: Mapping[str, nn.Module]) -> tuple[nn.Module, Mapping[str, nn.Module]]:
    """Modules of their own around the model's Parameters: what a forward keeps in lists or counts is gone with them.

    The model itself where it cannot be copied; then `without_traces` puts back what it can.
    """
    memo: dict[int, Any] = {id(parameter): parameter for parameter in model.parameters()}
    computed = (tensor for module in model.modules() for tensor in computed_tensors(module))
    memo |= {id(tensor): tensor.detach().clone() for tensor in computed}
    try:
        twin = deep_copy(model, memo)
    except Exception:  # the user's own code may run
        return model, layers
    return twin, {name: memo[id(layer)] for name, layer in layers.items()}


def tensors_in(output: Any) -> Iterator[Tensor]:
    """The tensors in what a model returned."""
    for leaf in pytree.tree_leaves(output):
        if isinstance(leaf, Tensor):
            yield leaf
        elif isinstance(leaf, Mapping):
            yield from tensors_in(list(leaf.values()))
        elif hasattr(leaf, "__dict__") and not isinstance(leaf, nn.Module):
            yield from tensors_in([value for value in vars(leaf).values() if isinstance(value, Tensor)])


def _seed() -> None:
    """Not torch.manual_seed, which also seeds devices that no one has used yet, for good; nor beside other threads."""
    if not borrows():
        return
    torch.default_generator.manual_seed(0)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed_all(0)


@contextmanager
def without_traces(model: nn.Module) -> Iterator[None]:
    """The model in eval mode; afterwards it and all random states are as they were."""
    modules = [module for module in model.modules() if not isinstance(module, torch.jit.ScriptModule)]
    before = [(vars(module), dict(vars(module))) for module in modules]
    registered = [(module._buffers, dict(module._buffers)) for module in modules]
    values = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    fused = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)  # it would run past the layers
        # cuDNN has no backward for recurrent layers in eval mode
        recurrent = any(isinstance(module, nn.RNNBase) for module in modules)
        cudnn = torch.backends.cudnn.flags(enabled=not recurrent)
        with same_randomness(), cudnn if recurrent else nullcontext():
            for module in modules:
                module.training = False
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for present, past in (*before, *registered):
            present.clear()
            present.update(past)
        with torch.no_grad():
            for buffer, value in values:
                buffer.copy_(value)


def _enter(calls: Calls, name: str) -> Any:
    def enter(layer: nn.Module, args: Any, kwargs: Any) -> None:
        given = (*args, *kwargs.values())
        x = next((value for value in given if isinstance(value, Tensor)), None)
        packed = next((value.data for value in given if isinstance(value, PackedSequence)), None)
        if packed is not None:
            calls.add(name, packed, None)
        elif x is not None:
            calls.add(name, x, example_dims(layer, x))
        calls.inside.append(name)

    return enter


def _leave(calls: Calls) -> Any:
    def leave(layer: nn.Module, args: Any, output: Any) -> None:
        calls.inside.pop()

    return leave


def _held_by_others(model: nn.Module, layers: Mapping[str, nn.Module]) -> set[int]:
    """The ids of Parameters that a module which is not watched multiplies by in its own right."""
    watched = {id(layer) for layer in layers.values()}
    others = (each for each in model.modules() if id(each) not in watched and not isinstance(each, nn.Embedding))
    return {id(parameter) for module in others for parameter in module.parameters(recurse=False)}


_DATA = frozenset((Tensor.data.__get__, Tensor.data.__set__))  # type: ignore[attr-defined]
_IN_PLACE = frozenset(f"__i{name}__" for name in ("add", "sub", "mul", "truediv", "and", "or")) | {"__setitem__"}


class _Uses(TorchFunctionMode):
    """Watches for multiplications by weights, and by views of these, outside of the layers that hold them."""

    def __init__(self, calls: Calls, layers: Mapping[str, nn.Module], others: set[int]) -> None:
        super().__init__()
        self.calls, self.others = calls, others
        self.written: dict[int, tuple[nn.Parameter, Tensor, Tensor]] = {}
        self.weights: list[tuple[Tensor, str]] = [
            (parameter, name)
            for name, layer in layers.items()
            for parameter in layer.parameters(recurse=False)
            if is_lazy(parameter) or parameter.dim() > 1
        ]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._keep(func, args)
        if func in BODIES and not self.calls.inside:
            with self:
                return BODIES[func](*args, **(kwargs or {}))
        output = func(*args, **(kwargs or {}))
        if not self.calls.inside:
            self._note(func, args, kwargs or {}, output)
        return output

    def _keep(self, func: Any, args: Any) -> None:
        """Keep the values of a Parameter that may be written to: masked and renormalized weights are, at each call."""
        name = getattr(func, "__name__", "")
        writes = func in _DATA or name in _IN_PLACE or (name.endswith("_") and not name.endswith("__"))
        held = args[0] if writes and args else None
        if isinstance(held, nn.Parameter) and not is_lazy(held) and id(held) not in self.written:
            with torch.no_grad(), torch._C.DisableTorchFunction():
                self.written[id(held)] = held, held.data, held.detach().clone()

    def restore(self) -> None:
        """Put back what was kept."""
        with torch.no_grad():
            for parameter, memory, values in self.written.values():
                parameter.data = memory
                memory.copy_(values)

    def _note(self, func: Any, args: Any, kwargs: Any, output: Any) -> None:
        given = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        known = next((pair for pair in self.weights if any(pair[0] is value for value in given)), None)
        if known is None:
            return
        weight, name = known
        if func in MULTIPLICATIONS:
            use = MULTIPLICATIONS[func].use(weight, args, kwargs)
            if id(weight) not in self.others:
                self.calls.outside.setdefault(name, user_code(sys._getframe(2)))
            if use is not None:
                self.calls.add(name, use.inputs[0], use.product.free_dims(use.inputs[0].dim()))
        elif role(func, args, kwargs, weight) in (Role.VIEW, Role.SCALED):
            views = [output] if isinstance(output, Tensor) else list(output)
            self.weights += [(view, name) for view in views if isinstance(view, Tensor)]
