"""Inert placeholders: what objects of foreign classes become that stand beside the weights in a checkpoint.

They are read as data and never imported. The listing settles what each becomes: an object that the pickle fills like a
dict is a dict, one that it fills like a list is a list, any other keeps its arguments and its state.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from typing import Any

from .global_names import Name, words
from .pickle_listing import Listing
from .torch_archive import NOTE


class Placeholder:
    """Stands for an object of a foreign class: its class's `name`, the `args` it was made with and its `state`."""

    name: str = ""
    args: tuple[Any, ...] = ()
    state: Any = None

    def __new__(cls, *args: Any) -> Placeholder:
        made = super().__new__(cls)
        made.args = args
        return made

    def __init__(self, *args: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Filled:
    """Stands for a class whose objects the pickle fills with items: a call or `__new__` gives an empty container."""

    def __init__(self, name: str, kind: type) -> None:
        self.name = name
        self.kind = kind
        self.__new__ = lambda cls, *args: kind()  # type: ignore[method-assign]

    def __call__(self, *args: Any) -> Any:
        return self.kind()


def placeholders(found: Listing) -> list[Any]:
    """A placeholder for every name of the listing, in the form that `torch.serialization.safe_globals` takes.

    torch's reader prefers its own meaning of the names that it knows (tensors, dtypes, OrderedDict).
    """
    fills = {made.maker: made.fills for made in found.made if isinstance(made.maker, Name) and made.fills}
    made = {str(name): _stand_in(name, fills.get(name)) for name in found.names}

    def inner(owner: Any, attribute: str) -> Any:
        """In place of getattr, by which picklers write a class inside a class."""
        return made.get(f"{getattr(owner, 'name', '')}.{attribute}", Placeholder())

    made["builtins.getattr"] = inner
    made[NOTE] = _second
    made |= {"a dict\n": dict, "a list\n": list}  # what _Filled makes, under names that no pickle can spell
    return [(target, name) for name, target in made.items()]


def _stand_in(name: Name, fills: str | None) -> Any:
    if fills is not None:
        return _Filled(str(name), OrderedDict if fills == "dict" else list)
    return type("Placeholder", (Placeholder,), {"name": str(name)})


def _second(kind: str, cls: Any, *_: Any) -> Any:
    return cls


def dangerous(found: Listing) -> list[Name]:
    """The names that weights have no need of and that run code where a pickle is opened without care."""
    called = {maker for maker, _ in found.calls}
    return [name for name in found.names if is_dangerous(name, name in called)]


def is_dangerous(name: Name, called: bool) -> bool:
    """Whether a global is one that runs code; of torch's own, which functions the pickle may call is settled too."""
    parts = str(name).split(".")
    if parts[0] in sys.stdlib_module_names - {"__main__"}:
        return not (str(name) in _HARMLESS or name.module in _HARMLESS or parts[0] in _HARMLESS)
    if any(part in _NEVER for part in parts[:-1]) or parts[0] in _TOOLS:
        return True
    if parts[0] == "torch" and called:
        return parts[-1][:1].islower() and not parts[-1].startswith("_rebuild") and str(name) not in _TORCH_CALLS
    return parts[0] == "numpy" and called and str(name) in _NUMPY_NEVER


# Names or whole modules of the standard library whose objects people keep in checkpoints.
_HARMLESS = words("""
    argparse.Namespace collections datetime pathlib enum decimal fractions uuid types.SimpleNamespace typing zoneinfo
    functools.partial copyreg._reconstructor copyreg.__newobj__ copyreg.__newobj_ex__ _codecs.encode random.Random
    dataclasses logging.Logger logging.getLogger _collections_abc numbers ipaddress array.array operator.itemgetter
    builtins.dict builtins.list builtins.set builtins.frozenset builtins.tuple builtins.int builtins.float builtins.str
    builtins.bytes builtins.bytearray builtins.complex builtins.bool builtins.object builtins.slice builtins.range
    builtins.type builtins.getattr
""")
_NEVER = words("""
    os posix nt sys subprocess importlib builtins ctypes shutil socket runpy pickle marshal code inspect multiprocessing
""")
_TOOLS = words("pip setuptools pkg_resources dill cloudpickle joblib jsonpickle IPython")
_TORCH_CALLS = words("torch.device torch.serialization._get_layout")
_NUMPY_NEVER = words("numpy.load numpy.fromfile numpy.save numpy.savez numpy.genfromtxt numpy.loadtxt")
