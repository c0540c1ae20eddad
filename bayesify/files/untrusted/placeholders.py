"""Inert placeholders: what objects of foreign classes become that stand beside the weights in a checkpoint.

They are read as data and never imported: an object that the pickle fills like a dict is a dict, one that it fills like
a list is a list, any other keeps its arguments and its state.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import torch

from .builder import Builder
from .container_rules import CONTAINER_RULES
from .global_names import Name, words
from .nodes import Call
from .pickle_reader import Pickle
from .tensor_rules import TENSOR_RULES


@dataclass(eq=False)
class Placeholder:
    """Stands for an object of a foreign class: its class's `name`, the `args` it was made with and its `state`."""

    name: str = ""
    args: tuple[Any, ...] = ()
    state: Any = None


class WeightsBuilder(Builder):
    """Builds tensors and plain containers, and placeholders for everything else."""

    rules = TENSOR_RULES | CONTAINER_RULES

    def name(self, name: Name) -> Any:
        """A dtype as torch's own, any other global as a placeholder."""
        return torch_constant(name) or Placeholder(str(name))

    def object(self, node: Call) -> Any:
        """A dict, a list, or a placeholder."""
        name = str(node.maker) if isinstance(node.maker, Name) else ""
        if node.pairs:
            return self.fill(self.keep(node, OrderedDict()), node.pairs)
        if node.items:
            made: list[Any] = self.keep(node, [])
            made += [self.value(item) for item in node.items]
            return made
        placeholder = self.keep(node, Placeholder(name))
        placeholder.args = tuple(self.value(arg) for arg in node.args)
        placeholder.state = self.value(node.state)
        return placeholder


def torch_constant(name: Name) -> Any:
    """torch's dtype, layout, memory format or quantization scheme of this name, or None."""
    value = vars(torch).get(name.qualname) if name.module == "torch" else None
    kinds = (torch.dtype, torch.layout, torch.memory_format, torch.qscheme)
    return value if isinstance(value, kinds) else None


def dangerous(pickle: Pickle) -> list[Name]:
    """The names that weights have no need of and that run code where a pickle is opened without care."""
    return [name for name in pickle.names if is_dangerous(name, name in pickle.called)]


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
