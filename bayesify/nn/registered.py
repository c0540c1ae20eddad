"""Where the classes that bayesify derives from users' own live, so that pickles of them find their class.

A class's name here holds the path of the class that it came from: `Flipout/mypkg-layers/MyLinear`.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import nn

from ..errors import UnregisteredLayerError

REROUTING = "Rerouting"
_REROUTED = "Rerouted"  # ends the prefix of a class whose products are rerouted: it may have a variant, too


def derived(prefix: str, cls: type[nn.Module], bases: tuple[type, ...], members: dict[str, Any]) -> Any:
    """`class FlipoutMyLinear(*bases)`: the same class whenever it is asked for again."""
    path = "/".join((prefix, cls.__module__.replace(".", "-"), cls.__qualname__.replace(".", "-")))
    found = globals().get(path)
    if found is None or not set(bases) <= set(found.__mro__):
        doc = f"{cls.__qualname__} under {prefix}."
        own = {"__module__": __name__, "__qualname__": path, "__doc__": doc, "_plain": cls}
        # what only reroutes bears its class's name: libraries write it into their files
        name = cls.__name__ if prefix == REROUTING else prefix.removesuffix(_REROUTED) + cls.__name__
        globals()[path] = found = type(name, bases, own | members)
        torch.serialization.add_safe_globals([found])
    return found


def origin(path: str) -> tuple[str, str] | None:
    """The module and the qualified name of the class that a derived one came from, if the path is one."""
    prefix, *parts = path.split("/")
    if prefix.removesuffix(_REROUTED) not in ("Flipout", "LRT", REROUTING) or len(parts) != 2:
        return None
    return parts[0].replace("-", "."), parts[1].replace("-", ".")


def __getattr__(path: str) -> Any:
    """A pickle asks for a class that this process has not made yet. Nothing is imported for it."""
    cls = _imported(path)
    if cls is None:
        raise UnregisteredLayerError(
            f"{path!r} belongs to a layer class that is not imported or registered in this process"
        )
    from .registry import rerouted, rerouting, variant

    if path.startswith(REROUTING):
        return rerouting(cls)
    method: Any = "flipout" if path.startswith("Flipout") else "lrt"
    if path.partition("/")[0].endswith(_REROUTED):
        return rerouted(cls, method)
    found = variant(cls, method)
    if found is None:
        raise UnregisteredLayerError(
            f"{cls.__name__} was registered where {path!r} was made: bayesify.register it here too"
        )
    return found


def _imported(path: str) -> type[nn.Module] | None:
    found: Any = None
    if (place := origin(path)) is not None:
        found = sys.modules.get(place[0])
        for part in place[1].split("."):
            found = getattr(found, part, None)
    return found if isinstance(found, type) and issubclass(found, nn.Module) else None
