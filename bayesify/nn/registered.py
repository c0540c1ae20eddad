"""Where the variational variants of users' own layer classes live, so that pickles of them find their class.

A variant's name here holds the path of the class that it came from: `Flipout/mypkg-layers/MyLinear`.
"""

from __future__ import annotations

import sys
from typing import Any

from torch import nn


def derived(prefix: str, cls: type[nn.Module], bases: tuple[type, ...], members: dict[str, Any]) -> Any:
    """`class FlipoutMyLinear(*bases)`: the same class whenever it is asked for again."""
    path = "/".join((prefix, cls.__module__.replace(".", "-"), cls.__qualname__.replace(".", "-")))
    found = globals().get(path)
    if found is None or not set(bases) <= set(found.__mro__):
        own = {"__module__": __name__, "__qualname__": path, "__doc__": f"{cls.__qualname__} under {prefix}."}
        globals()[path] = found = type(prefix + cls.__name__, bases, own | members)
    return found


def origin(path: str) -> tuple[str, str]:
    """The module and the qualified name of the class that a variant came from."""
    _, module, qualname = path.split("/")
    return module.replace("-", "."), qualname.replace("-", ".")


def __getattr__(path: str) -> Any:
    """A pickle asks for a variant that this process has not made yet. Nothing is imported for it."""
    cls = _imported(path)
    if cls is None:
        raise AttributeError(f"{path!r} belongs to a layer class that is not imported or registered in this process")
    from .registry import rerouted, variant

    method: Any = "flipout" if path.startswith("Flipout") else "lrt"
    return variant(cls, method) or rerouted(cls, method)


def _imported(path: str) -> type[nn.Module] | None:
    if path.count("/") != 2:
        return None
    module, qualname = origin(path)
    found: Any = sys.modules.get(module)
    for part in qualname.split("."):
        found = getattr(found, part, None)
    return found if isinstance(found, type) and issubclass(found, nn.Module) else None
