"""Where a network's first noise is: what is computed before it is the same for all draws of an example.

That is so where an nn.Sequential says in which order its modules run, and torch's own modules stand before the first
layer with a posterior: they take each example by itself, in dimension 0, and draw nothing.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.modules.module import _has_any_global_hook

from ..nn.base import Variational
from ..nn.basis import has_basis
from ..nn.kl import variational_layers
from ..nn.switches import way_of

_OTHERS = (nn.Flatten, nn.Unflatten, nn.FractionalMaxPool2d, nn.FractionalMaxPool3d)  # move examples, or draw


def layer_of_parting(model: nn.Module) -> Variational | None:
    """The layer that computes the first noise, with all before it deterministic; None where that is not known."""
    layer = None if _has_any_global_hook() else _first(model)  # type: ignore[no-untyped-call]
    if layer is None or way_of(layer) is not None or layer._settings.batch_dim != 0:
        return None
    folding = any(own._settings.rows > 1 for _, own in variational_layers(model))  # they count the model's own examples
    return None if folding else layer


def _first(module: nn.Module) -> Variational | None:
    if not _unhooked(module):
        return None
    if isinstance(module, Variational):
        base: Any = type(module).forward  # one for each class, of the same code
        plain = base.__code__ is Variational.forward.__code__ and not any(True for _ in module.children())
        return module if plain and not has_basis(module, "weight") else None
    if type(module).forward is nn.Sequential.forward:
        noisy = (child for child in module.children() if not _is_deterministic(child))
        return next(map(_first, noisy), None)
    return None


def _is_deterministic(module: nn.Module) -> bool:
    if type(module).forward is nn.Sequential.forward:
        return _unhooked(module) and all(map(_is_deterministic, module.children()))
    torchs = type(module).__module__.startswith("torch.nn.modules.") and not any(True for _ in module.children())
    per_example = not isinstance(module, _OTHERS) or (type(module) is nn.Flatten and module.start_dim > 0)
    return torchs and per_example and not module.training and _unhooked(module)


def _unhooked(module: nn.Module) -> bool:
    """Whether calling the module runs its class's forward, and beside that our own code alone."""
    hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    ours = all(getattr(hook, "__module__", "").startswith("bayesify.") for hook in hooks)
    return ours and "forward" not in vars(module) and module._compiled_call_impl is None
