"""Networks whose structure says that examples stay apart, so that no trial is needed: chains that take row by row.

That is a linear layer, or an nn.Sequential of them and of elementwise functions, on a matrix or what is flattened to
one.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from ..estimators.noise import Counts
from ..nn.base import Variational
from ..nn.linear import LinearFamily
from .calls import Call
from .parting import layers_that_part
from .trials import Apart

_ELEMENTWISE = {
    nn.CELU, nn.Dropout, nn.ELU, nn.GELU, nn.Hardsigmoid, nn.Hardswish, nn.Hardtanh, nn.Identity, nn.LeakyReLU,
    nn.LogSigmoid, nn.Mish, nn.ReLU, nn.ReLU6, nn.SELU, nn.SiLU, nn.Sigmoid, nn.Softplus, nn.Softsign, nn.Tanh,
}  # fmt: skip


def apart_by_structure(model: nn.Module, call: Call) -> Apart | None:
    """How the examples of the call stand beside each other; None where the structure does not tell."""
    if call.kwargs or len(call.args) != 1 or type(call.args[0]) is not Tensor:
        return None
    if _has_any_global_hook():  # type: ignore[no-untyped-call]
        return None
    shape, sizes, layers = tuple(call.args[0].shape[1:]), [], []
    able = layers_that_part(model)
    for module in _in_order(model):
        if type(module) is nn.Flatten and (module.start_dim, module.end_dim) == (1, -1) and shape:
            shape = (prod(shape),)
        elif isinstance(module, nn.Linear) and _is_by_row(module, able) and shape[1:] == () and shape:
            shape = (module.out_features,)
            layers += [module] if isinstance(module, Variational) else []
        elif type(module) not in _ELEMENTWISE or module.training or not shape:
            return None
        if not _is_unhooked(module):
            return None
        sizes += [prod(shape)] if layers else []
    if not layers:
        return None
    rows = Counts([], [1] * len(layers))
    return Apart(max(prod(shape), 1), (rows, rows), layers[0], max(sizes))


def _in_order(module: nn.Module) -> Iterator[nn.Module]:
    """What an nn.Sequential calls, those within it too; the Sequential itself where a call of it does more."""
    if type(module).forward is nn.Sequential.forward and _is_unhooked(module):
        for child in module._modules.values():  # each as often as it is called
            if child is not None:
                yield from _in_order(child)
    else:
        yield module


def _is_by_row(layer: nn.Linear, able: Any) -> bool:
    if not isinstance(layer, Variational):
        return type(layer) is nn.Linear
    return layer in able and isinstance(layer, LinearFamily) and layer._settings.signs == "example"


def _is_unhooked(module: nn.Module) -> bool:
    """Whether calling the module runs its class's forward, and beside that our own code alone."""
    hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    ours = all(getattr(hook, "__module__", "").startswith("bayesify.") for hook in hooks)
    return ours and "forward" not in vars(module) and module._compiled_call_impl is None
