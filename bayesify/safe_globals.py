"""What `torch.load(..., weights_only=True)` may build of ours: entered with torch as soon as torch is imported.

`import bayesify` alone makes torch open a converted model, and `bayesify --help` does not wait for torch. So where
torch is not imported yet, a finder waits for it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any


def register_once_torch_is_imported() -> None:
    """Register now if torch is imported already, else right after its import."""
    if "torch" in sys.modules:
        register()
    else:
        sys.meta_path.insert(0, _AfterTorch())


def register() -> None:
    """Enter the classes and functions that a converted model holds beside its plain layers."""
    import torch

    from .files.untrusted.saved_names import pinned

    things = pinned()
    # `again` makes the class of a graph from code that the file holds
    torch.serialization.add_safe_globals([thing for name, thing in things.items() if name != "bayesify.programs.again"])


class _AfterTorch(MetaPathFinder):
    """Finds torch and bayesify's modules as usual, and registers when torch is there and none of them is half imported.

    A module of ours may be what imports torch: then registering waits until that module is whole.
    """

    def __init__(self) -> None:
        self.running = 0

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The usual spec, its loader watched; None for any other module."""
        if name != "torch" and not name.startswith("bayesify."):
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec and spec.loader:
            loader: Any = spec.loader
            loader.exec_module = self._watched(loader.exec_module)
        return spec

    def _watched(self, execute: Callable[[ModuleType], None]) -> Callable[[ModuleType], None]:
        def execute_and_register(module: ModuleType) -> None:
            self.running += 1
            try:
                execute(module)
            finally:
                self.running -= 1
            if not self.running and "torch" in sys.modules and self in sys.meta_path:
                sys.meta_path.remove(self)
                register()

        return execute_and_register
