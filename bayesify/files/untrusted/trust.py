"""Which of the globals that a pickled model names may be built, and in which role.

Roles, from the narrowest: a `value` is only stored, a `module` or a `plain` object is made by `__new__` and given its
attributes (its constructor never runs), an `enum` may be looked up by value, a `call` may be called by the file.
"""

from __future__ import annotations

import contextlib
import enum
import functools
import importlib
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from ...errors import did_you_mean
from ...nn.base import Variational
from ...nn.registry import DERIVED_IN, by_saved_name, origin
from ...programs.program import rebuilt
from .global_names import Name, words
from .placeholders import is_dangerous
from .saved_names import PINNED, PINNED_NAMES
from .stand_ins import ACTIVATIONS, VARIABLE_FUNCTIONS, NumpyType, attribute, class_of_note, numpy_scalar
from .torch_archive import NOTE

Role = Literal["call", "enum", "module", "plain", "value"]

LIBRARIES = ("torch.nn", "torchvision", "timm", "transformers")
OURS = tuple(PINNED)


@dataclass(frozen=True)
class Trusted:
    """One global that may be used. `target` is None where torch's reader knows the global by itself."""

    role: Role
    target: Any = None


@dataclass(frozen=True)
class Refused:
    """One global that may not. `never` says that no `--allow` lets it in; `why` replaces the usual reason."""

    never: bool = True
    why: str | None = None


def judge(name: Name, allow: Sequence[str]) -> Trusted | Refused:
    """Decide about one global: torch's own, one of the four libraries', bayesify's, or one that the user allows."""
    known = KNOWN.get(str(name)) or _of_torch(name)
    if known is not None:
        return known
    if origin_of(name) != name:
        return _derived(name, allow)
    if str(name) in PINNED_NAMES or (_within(name.module, LIBRARIES) and "__main__" not in name.module):
        return _of_library(name)
    if name.module.partition(".")[0] in _STANDARD or is_dangerous(name, called=True) or _is_no_class(name):
        return Refused()
    if name.module == "__main__":
        return Refused(why=f"{name} was defined in a script, where no other program finds it; move it into a module")
    exact = str(name) in allow
    if exact or any(str(name).startswith(pattern[:-1]) for pattern in allow if pattern.endswith(".*")):
        return _of_user(name, exact)
    return Refused(never=False)


def origin_of(name: Name) -> Name:
    """The class that a name stands for: of a class that conversion derived, the one that it was derived from."""
    place = origin(name.qualname) if name.module == DERIVED_IN else None
    return name if place is None else Name(*place)


def _derived(name: Name, allow: Sequence[str]) -> Trusted | Refused:
    """A class that conversion derived is trusted as far as its origin, which judging imports."""
    verdict = judge(origin_of(name), allow)
    if isinstance(verdict, Refused):
        return verdict
    if verdict.role != "module" or issubclass(verdict.target, Variational):
        return Refused()
    return Trusted("module", by_saved_name(name.qualname))


def is_plain(name: Name) -> bool:
    """Whether a global is one that pickled tensors and plain values need."""
    return str(name) in _REBUILDERS or _of_torch(name) is not None


def _of_torch(name: Name) -> Trusted | None:
    if name.module in ("torch", "torch.cuda", "torch.storage") and name.qualname.endswith("Storage"):
        return Trusted("value")
    if name.module == "torch" and "." not in name.qualname:
        value = getattr(torch, name.qualname, None)
        if isinstance(value, torch.dtype | torch.layout | torch.memory_format | torch.qscheme):
            return Trusted("value", value)
    if name.module in ("torch.nn.functional", "torch._C._nn") and name.qualname in ACTIVATIONS:
        return Trusted("value", getattr(importlib.import_module(name.module), name.qualname, None))
    owner, _, activation = str(name).rpartition(".")
    return Trusted("value") if owner == _VARIABLE_FUNCTIONS and activation in ACTIVATIONS else None


def _of_library(name: Name) -> Trusted | Refused:
    found = _find(name)
    if isinstance(found, Refused):
        return found
    if not _within(getattr(found, "__module__", None) or "", (*LIBRARIES, *OURS)):
        return Refused()
    if isinstance(found, type):
        return _class(found) or Refused()
    listed = str(name) in HELPERS or name.module.startswith("timm.layers.activations") or str(name) in PINNED_NAMES
    return Trusted("value", found) if listed and callable(found) else Refused()


def _class(cls: type) -> Trusted | None:
    """The role of a class that one of the libraries, or bayesify, defines."""
    if issubclass(cls, nn.Module):
        return None if issubclass(cls, _RUNS_CODE) else Trusted("module", cls)
    if issubclass(cls, enum.Enum):
        return Trusted("enum", cls)
    if issubclass(cls, _UNINITIALIZED):
        return Trusted("call", cls)
    name = f"{cls.__module__}.{cls.__qualname__}"
    if name in HELPERS or _within(cls.__module__, OURS) or any(base.__name__ in _CONFIGS for base in cls.__mro__):
        return Trusted("plain", cls)
    return None


def _of_user(name: Name, exact: bool) -> Trusted | Refused:
    with current_directory_first():
        found = _find(name)
    if isinstance(found, Refused):
        return found
    if not isinstance(found, type) or found.__module__.partition(".")[0] in _STANDARD:
        return Refused()
    if issubclass(found, nn.Module):
        return Refused() if issubclass(found, _RUNS_CODE) else Trusted("module", found)
    if not exact:
        return Refused(never=False)
    return Trusted("enum" if issubclass(found, enum.Enum) else "plain", found)


def _is_no_class(name: Name) -> bool:
    """Whether a module that is imported already has something else than a class under this name."""
    found: Any = sys.modules.get(name.module)
    for part in name.qualname.split("."):
        found = getattr(found, part, None)
    return found is not None and not isinstance(found, type)


def _find(name: Name) -> Any:
    """Import what a trusted module calls so; a class inside a class is followed, a module inside a module is not."""
    top = name.module.partition(".")[0]
    try:
        found: Any = importlib.import_module(name.module)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name == top:
            return Refused(why=f"{name}: {top} is not installed or not on the path")
        return Refused(why=f"{name}: importing {name.module} fails ({_line(error)})")
    for part in name.qualname.split("."):
        inner = getattr(found, part, None)
        if inner is None or isinstance(inner, type(sys)):
            return Refused(why=f"{name}: {name.module} has no {name.qualname!r}.{did_you_mean(part, vars(found))}")
        found = inner
    return found


@contextlib.contextmanager
def current_directory_first() -> Iterator[None]:
    """Imports look into the current directory first, as under `python -m`."""
    here = os.getcwd()
    sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(here)


def _line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__


def _within(module: str, packages: Sequence[str]) -> bool:
    return any(module == package or module.startswith(package + ".") for package in packages)


_UNINITIALIZED: Any = vars(nn.parameter)["UninitializedTensorMixin"]  # not in torch's type stubs
_STANDARD = sys.stdlib_module_names - {"__main__"}
_VARIABLE_FUNCTIONS = "torch._C._VariableFunctionsClass"
_RUNS_CODE = (torch.jit.ScriptModule, torch.fx.GraphModule)  # their state is source code, or compiled code
_CONFIGS = frozenset({"PreTrainedConfig", "PretrainedConfig", "GenerationConfig"})  # of transformers

# What torch's reader knows by itself and may call. Its rebuilders of nested tensors and of wrapper subclasses, which
# take any offset, stay out.
_REBUILDERS = words("""
    torch._utils._rebuild_parameter torch._utils._rebuild_parameter_with_state torch._utils._rebuild_tensor
    torch._utils._rebuild_tensor_v2 torch._utils._rebuild_tensor_v3 torch._utils._rebuild_sparse_tensor
    torch._utils._rebuild_qtensor torch._utils._rebuild_meta_tensor_no_storage torch._tensor._rebuild_from_type_v2
    torch._utils._rebuild_device_tensor_from_cpu_tensor torch.serialization._get_layout torch.Size torch.device
    torch.nn.parameter.Parameter torch.Tensor collections.OrderedDict collections.Counter builtins.set builtins.complex
    builtins.bytearray _codecs.encode
""")

# The handful of plain things that trained models of the four libraries store beside modules.
HELPERS = words("""
    torch.nn.modules.module._WrappedHook torch.nn.utils.weight_norm.WeightNorm
    torch.nn.utils.spectral_norm.SpectralNorm torch.nn.utils.spectral_norm.SpectralNormStateDictHook
    torch.nn.utils.spectral_norm.SpectralNormLoadStateDictPreHook
    torch.nn.utils.prune.L1Unstructured torch.nn.utils.prune.RandomUnstructured torch.nn.utils.prune.LnStructured
    torch.nn.utils.prune.RandomStructured torch.nn.utils.prune.CustomFromMask torch.nn.utils.prune.Identity
    torch.nn.utils.prune.PruningContainer
    torchvision.ops.boxes.box_iou torchvision.models.optical_flow.raft._pass_through_h
    torchvision.models.detection._utils.BoxCoder torchvision.models.detection._utils.Matcher
    torchvision.models.detection._utils.SSDMatcher torchvision.models.detection._utils.BalancedPositiveNegativeSampler
    timm.models._features.FeatureInfo
""")

KNOWN: dict[str, Trusted] = {
    **{name: Trusted("call") for name in _REBUILDERS},
    "torch.utils.hooks.RemovableHandle": Trusted("plain", torch.utils.hooks.RemovableHandle),
    "functools.partial": Trusted("call", functools.partial),
    "bayesify.programs.rebuilt": Trusted("call", rebuilt),
    "builtins.getattr": Trusted("call", attribute),
    NOTE: Trusted("call", class_of_note),
    "numpy.dtype": Trusted("call", NumpyType),
    "numpy.core.multiarray.scalar": Trusted("call", numpy_scalar),
    "numpy._core.multiarray.scalar": Trusted("call", numpy_scalar),
    _VARIABLE_FUNCTIONS: Trusted("value", VARIABLE_FUNCTIONS),
    "torch.optim.swa_utils.AveragedModel": Trusted("module", torch.optim.swa_utils.AveragedModel),
}
