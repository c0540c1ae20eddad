"""A change of a model that is made whole or not at all, wherever it fails or is interrupted."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, fx, nn

_CONTAINERS = frozenset(name for name, value in vars(nn.Module()).items() if isinstance(value, dict | set))


def all_or_nothing(model: nn.Module, change: Callable[[], None], tensors: Iterable[Tensor] = ()) -> None:
    """Run the change; where it raises, or Ctrl-C comes meanwhile, the model is put back as it was before.

    Args:
        model: what the change may rewrite: classes, attributes, hooks, children, graphs.
        change: does all that may fail for a known reason first.
        tensors: those whose values it writes. A copy of them is kept meanwhile.
    """
    before = [_ModuleState(module) for module in model.modules() if not isinstance(module, torch.jit.ScriptModule)]
    values = [(tensor, tensor.detach().clone()) for tensor in tensors]
    with_gradients = torch.is_grad_enabled()
    try:
        change()
    except BaseException:
        _whatever_comes(lambda: _restore(before, values))
        torch.set_grad_enabled(with_gradients)  # an interrupt may have hit where torch.no_grad() ended
        raise


class _ModuleState:
    """What a module is made of, one level deep: its class, its attributes, what is in torch's own dictionaries."""

    def __init__(self, module: nn.Module) -> None:
        self.module, self.kind, self.attributes = module, type(module), dict(vars(module))
        held = [value for name, value in vars(module).items() if name in _CONTAINERS]
        self.contents = [(value, value.copy() if value else ()) for value in held]
        # a graph's class is its own, and holds its code
        self.code = dict(vars(self.kind)) if isinstance(module, fx.GraphModule) else {}

    def restore(self) -> None:
        """Put it all back, past any `__setattr__` of the user's; to do so twice does no harm."""
        object.__setattr__(self.module, "__class__", self.kind)
        attributes = vars(self.module)
        for name in attributes.keys() - self.attributes.keys():
            del attributes[name]
        attributes.update(self.attributes)
        for container, content in self.contents:
            container.clear()
            container.update(content)
        for name, value in self.code.items():
            if vars(self.kind).get(name) is not value:
                setattr(self.kind, name, value)


@torch.no_grad()
def _restore(before: list[_ModuleState], values: list[tuple[Tensor, Tensor]]) -> None:
    for state in before:
        state.restore()
    for tensor, value in values:
        tensor.data.copy_(value)


def _whatever_comes(restore: Callable[[], Any]) -> None:
    """A second Ctrl-C does not stop it: the first one is raised when all is done."""
    while True:
        try:
            restore()
            return
        except KeyboardInterrupt:
            continue
