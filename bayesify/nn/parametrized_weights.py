"""Weights that a layer computes from other Parameters: by a parametrization, by weight or spectral norm, by pruning.

What is computed is the posterior mean. Only torch's mechanisms are known here, the old ones by their hooks too.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import Parameter
from torch.nn.utils import parametrize, prune
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

_SOURCES = {WeightNorm: ("g", "v"), SpectralNorm: ("orig",), prune.BasePruningMethod: ("orig",)}


def value(layer: nn.Module, name: str) -> Tensor | None:
    """The weight or bias as it is now: the Parameter, or computed anew, with gradients and without side effects.

    Of complex numbers their real and imaginary parts, along a last dimension: each has a posterior.
    """
    if name in layer._parameters:
        own = layer._parameters[name]
        return own if own is None else as_real(own)
    if parametrize.is_parametrized(layer, name):
        computation: Any = layer.parametrizations[name]  # type: ignore[index]
        with _still(computation):
            return computation()  # type: ignore[no-any-return]
    hook = _hook(layer, name)
    if isinstance(hook, WeightNorm):
        return hook.compute_weight(layer)  # type: ignore[no-any-return]
    if isinstance(hook, SpectralNorm):
        return hook.compute_weight(layer, do_power_iteration=False)
    return None if hook is None else hook.apply_mask(layer)


def as_real(tensor: Tensor) -> Tensor:
    """The tensor; of complex numbers their real and imaginary parts, along a last dimension."""
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def as_stored(layer: nn.Module, name: str, numbers: Tensor) -> Tensor:
    """What `value` gives, with other numbers, as the Parameter holds them: the inverse of `as_real`."""
    own = layer._parameters.get(name)
    return numbers if own is None or not own.is_complex() else torch.view_as_complex(numbers)


def sources(layer: nn.Module, name: str) -> list[Parameter]:
    """The Parameters that hold the weight: itself, or those that it is computed from; none where that is not known."""
    if name in layer._parameters:
        own = layer._parameters[name]
        return [] if own is None else [own]
    if parametrize.is_parametrized(layer, name):
        return list(layer.parametrizations[name].parameters(recurse=False))  # type: ignore[index,union-attr]
    hook = _hook(layer, name)
    suffixes = next((names for kind, names in _SOURCES.items() if isinstance(hook, kind)), ())
    parameters = [layer._parameters.get(f"{name}_{suffix}") for suffix in suffixes]
    present = [parameter for parameter in parameters if parameter is not None]
    return present if len(present) == len(parameters) else []


def is_computed(layer: nn.Module, name: str) -> bool:
    """Whether the layer computes this weight in a way that is known."""
    return layer._parameters.get(name) is None and bool(sources(layer, name))


def identity(layer: nn.Module, name: str) -> tuple[int, ...]:
    """What is the same for two names of one weight: a tied Parameter has one posterior."""
    ids = tuple(map(id, sources(layer, name)))
    return (id(layer), *ids) if ids and layer._parameters.get(name) is None else ids


def mask(layer: nn.Module, name: str) -> Tensor | None:
    """Which elements pruning left, or None where none is pruned."""
    return layer._buffers.get(f"{name}_mask") if f"{name}_orig" in layer._parameters else None


def is_pruned(layer: nn.Module, name: str) -> bool:
    """Whether a hook of torch's pruning makes this weight, or made it until now."""
    return isinstance(_hook(layer, name), prune.BasePruningMethod)


def computed_names(cls: type) -> set[str]:
    """Which weights a class that torch made for parametrizations computes: each is a property of its own."""
    return {name for name, member in vars(cls).items() if isinstance(member, property)}


def computing_members(cls: type) -> dict[str, Any]:
    """What such a class adds to its base: to make one like it of another base."""
    kept = "__getstate__", "__deepcopy__", *computed_names(cls)
    return {name: member for name, member in vars(cls).items() if name in kept}


def kind_before(module: nn.Module) -> type[nn.Module]:
    """The module's class, without what parametrizations made of it."""
    return type(module).__bases__[0] if parametrize.is_parametrized(module) else type(module)


def computed_tensors(module: nn.Module) -> Iterator[Tensor]:
    """What hooks computed last, which torch does not copy."""
    for name, tensor in vars(module).items():
        if isinstance(tensor, Tensor) and _hook(module, name) is not None:
            yield tensor


def _hook(layer: nn.Module, name: str) -> Any:
    for hook in layer._forward_pre_hooks.values():
        of = getattr(hook, "_tensor_name" if isinstance(hook, prune.BasePruningMethod) else "name", None)
        if isinstance(hook, tuple(_SOURCES)) and of == name:
            return hook
    return None


@contextmanager
def _still(computation: nn.Module) -> Iterator[None]:
    """In eval mode, where spectral norm makes no further step."""
    modes = [(module, module.training) for module in computation.modules()]
    computation.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
