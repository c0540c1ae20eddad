"""Imports torch._dynamo, which code in a trace may do, as if nothing were replaced.

Dynamo keeps tables of Python's functions (`math.prod`), and would take what is replaced meanwhile for those, for good.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

from .tracing import Replacements

_DYNAMO = "torch._dynamo"


@contextmanager
def whole_dynamo(replaced: Replacements) -> Iterator[None]:
    """For as long as this lasts, an import of Dynamo finds everything as it was before these replacements."""
    if _DYNAMO in sys.modules:
        yield
        return
    finder: Any = _Finder(replaced)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


class _Finder:
    """Finds Dynamo where Python does, and has it run with nothing replaced."""

    def __init__(self, replaced: Replacements) -> None:
        self.replaced = replaced

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path, target) if name == _DYNAMO else None
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                with self.replaced.suspended():
                    run(module)

            vars(spec.loader)["exec_module"] = exec_module
        return spec
