"""Names of globals: how a pickle writes them, and how this package writes its lists of them."""

from __future__ import annotations

from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Name:
    """A global that the pickle names: `torch.nn.modules.linear` + `Linear`."""

    module: str
    qualname: str

    def __str__(self) -> str:
        return f"{self.module}.{self.qualname}"


def modern(module: str, qualname: str) -> Name:
    """The global under its present name: protocol 2 writes `__builtin__` for `builtins`, and more of that kind."""
    if (module, qualname) in NAME_MAPPING:
        return Name(*NAME_MAPPING[(module, qualname)])
    return Name(IMPORT_MAPPING.get(module, module), qualname)


def dotted(names: Iterable[Name]) -> str:
    """The names, separated by commas."""
    return ", ".join(str(name) for name in names)


def words(text: str) -> frozenset[str]:
    """The words of a text: how this package writes its lists of names."""
    return frozenset(text.split())
