"""Which of the globals that a pickled model names may be built, and in which role.

Roles, from the narrowest: a `value` is only stored, a `module` or a `plain` object is made by `__new__` and given its
attributes (its constructor never runs), an `enum` is looked up by its value, a `call` is made by a rule of ours.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import importlib
import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from ...errors import did_you_mean
from ...nn.base import Variational
from ...nn.registry import DERIVED_IN, by_saved_name, origin
from .container_rules import CONTAINER_RULES
from .everyday_rules import EVERYDAY_RULES
from .global_names import Name, words
from .hook_rules import HOOK_CLASSES, HOOK_RULES, OWN_HOOKS
from .placeholders import is_dangerous, torch_constant
from .saved_names import PINNED, PINNED_NAMES
from .tensor_rules import TENSOR_RULES

Role = Literal["call", "enum", "module", "plain", "value"]

LIBRARIES = ("torch.nn", "torchvision", "timm", "transformers")

# The modules of those libraries in which their layers and configurations are; to import one does nothing else.
_IMPORTABLE = re.compile(
    r"torch\.nn(\.\w+)*|torchvision\.(models|ops|transforms)(\.\w+)*|timm\.(models|layers|loss)(\.\w+)*"
    r"|transformers\.models\.\w+\.(modeling|configuration)_\w+|transformers\.generation\.configuration_utils"
    r"|transformers\.(activations|pytorch_utils|modeling_\w+|configuration_utils|cache_utils|loss\.\w+)"
)


@dataclass(frozen=True)
class Trusted:
    """One global that may be used: what it is (None where a rule stands in its place)."""

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
    if str(name) in PINNED_NAMES:
        return _of_library(name)
    if origin_of(name) != name:
        return _derived(name, allow)
    if within(name.module, LIBRARIES):
        return _of_library(name) if _IMPORTABLE.fullmatch(name.module) else Refused()
    if name.module.partition(".")[0] in _STANDARD or is_dangerous(name, called=True) or _is_no_class(name):
        return Refused()
    if not all(part.isidentifier() for part in str(name).split(".")):
        return Refused()  # no code has it, so nobody can allow it
    if name.module == "__main__":
        return Refused(why=f"{name} was defined in a script, where no other program finds it; move it into a module")
    if _allows(allow, name):
        return _of_user(name, exact=_allows(allow, name, exact=True))
    return Refused(never=False)


def origin_of(name: Name) -> Name:
    """The class that a name stands for: of a class that conversion derived, the one that it was derived from."""
    place = origin(name.qualname) if name.module == DERIVED_IN else None
    return name if place is None else Name(*place)


def within(module: str, packages: Sequence[str]) -> bool:
    """Whether a module is one of the packages, or inside of one."""
    return any(module == package or module.startswith(package + ".") for package in packages)


def _allows(allow: Sequence[str], name: Name, exact: bool = False) -> bool:
    """Whether the user's word lets a class in: by its name, or with all of its module; a class with its inner ones."""
    parts = name.qualname.split(".")
    owners = {f"{name.module}.{'.'.join(parts[: i + 1])}" for i in range(len(parts))}
    if owners & set(allow):
        return True
    return not exact and any(str(name).startswith(pattern[:-1]) for pattern in allow if pattern.endswith(".*"))


def _derived(name: Name, allow: Sequence[str]) -> Trusted | Refused:
    """A class that conversion derived is trusted as far as its origin, which judging imports."""
    verdict = judge(origin_of(name), allow)
    if isinstance(verdict, Refused):
        return verdict
    if verdict.role != "module" or issubclass(verdict.target, Variational):
        return Refused()
    try:
        return Trusted("module", by_saved_name(name.qualname))
    except AttributeError as error:
        return Refused(why=str(error))


def _of_torch(name: Name) -> Trusted | None:
    if name.module in ("torch", "torch.cuda", "torch.storage") and name.qualname.endswith("Storage"):
        return Trusted("value")
    constant = torch_constant(name) or _number_of_numpy(name)
    if constant is not None:
        return Trusted("value", constant)
    if name.module in ("torch.nn.functional", "torch._C._nn") and name.qualname in ACTIVATIONS:
        value = getattr(importlib.import_module(name.module), name.qualname, None)
        return None if value is None else Trusted("value", value)
    owner, _, activation = str(name).rpartition(".")
    if owner == _VARIABLE_FUNCTIONS and activation in ACTIVATIONS and hasattr(torch, activation):
        return Trusted("value", getattr(torch, activation))
    return None


def _number_of_numpy(name: Name) -> type | None:
    """numpy's type of a number, such as float32."""
    thing = vars(np).get(name.qualname) if name.module == "numpy" else None
    return thing if isinstance(thing, type) and issubclass(thing, np.generic) else None


def _of_library(name: Name) -> Trusted | Refused:
    thing = _find(name)
    if isinstance(thing, Refused):
        return thing
    if isinstance(thing, enum.Enum) and within(type(thing).__module__, LIBRARIES):
        return Trusted("value", thing)
    if not within(getattr(thing, "__module__", None) or "", (*LIBRARIES, *PINNED)):
        return Refused()
    if isinstance(thing, type):
        return _class(thing) or Refused()
    listed = str(name) in HELPERS or name.module.startswith("timm.layers.activations")
    return Trusted("value", thing) if listed and callable(thing) else Refused()


def _class(cls: type) -> Trusted | None:
    """The role of a class that one of the libraries, or bayesify, defines."""
    if issubclass(cls, nn.Module):
        return None if issubclass(cls, _RUNS_CODE) else Trusted("module", cls)
    if issubclass(cls, enum.Enum):
        return Trusted("enum", cls)
    if issubclass(cls, UNINITIALIZED):
        return Trusted("call", cls)
    name = f"{cls.__module__}.{cls.__qualname__}"
    plain = dataclasses.is_dataclass(cls) or (issubclass(cls, tuple) and hasattr(cls, "_fields"))
    if plain or _only_holds_data(cls) or name in HELPERS or any(base.__name__ in _CONFIGS for base in cls.__mro__):
        return Trusted("plain", cls)
    return None


def _only_holds_data(cls: type) -> bool:
    """Whether a class beside the layers does nothing by itself: without a base, and without a method that Python calls.

    Where such an object stands in the place of another, there is no call, no iteration and no index that it answers.
    """
    inside = within(cls.__module__, ("torchvision.models", "torchvision.ops", "timm.models", "timm.layers"))
    special = {name for name in vars(cls) if name.startswith("__") and callable(vars(cls)[name])}
    return inside and cls.__bases__ == (object,) and special <= {"__init__", "__repr__"}


def _of_user(name: Name, exact: bool) -> Trusted | Refused:
    with current_directory_first():
        thing = _find(name)
    if isinstance(thing, Refused):
        return thing
    if isinstance(thing, enum.Enum) and exact:
        return Trusted("value", thing)
    if not isinstance(thing, type) or thing.__module__.partition(".")[0] in _STANDARD:
        return Refused()
    if issubclass(thing, nn.Module):
        return Refused() if issubclass(thing, _RUNS_CODE) else Trusted("module", thing)
    if not exact:
        return Refused(never=False)
    return Trusted("enum" if issubclass(thing, enum.Enum) else "plain", thing)


def _is_no_class(name: Name) -> bool:
    """Whether a module that is imported already has something else than a class, or its member, under this name."""
    thing: Any = sys.modules.get(name.module)
    for part in name.qualname.split("."):
        thing = vars(thing).get(part) if hasattr(thing, "__dict__") else None
    return thing is not None and not isinstance(thing, type | enum.Enum)


def _find(name: Name) -> Any:
    """Import what a trusted module calls so; a class inside a class is followed, a module inside a module is not.

    Names are read from the modules' and classes' own dicts: what a module computes when it is asked is not run.
    """
    top = name.module.partition(".")[0]
    try:
        thing: Any = importlib.import_module(name.module)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name == top:
            return Refused(why=f"{name}: {top} is not installed or not on the path")
        return Refused(why=f"{name}: importing {name.module} fails ({_line(error)})")
    for part in name.qualname.split("."):
        known = vars(thing) if hasattr(thing, "__dict__") else {}
        inner = known.get(part)
        if inner is None or isinstance(inner, type(sys)):
            return Refused(why=f"{name}: {name.module} has no {name.qualname!r}.{did_you_mean(part, known)}")
        thing = inner
    return thing


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


UNINITIALIZED: Any = vars(nn.parameter)["UninitializedTensorMixin"]  # not in torch's type stubs
_STANDARD = sys.stdlib_module_names - {"__main__"}
_VARIABLE_FUNCTIONS = "torch._C._VariableFunctionsClass"  # `torch.relu` is pickled as an attribute of it
_RUNS_CODE = (torch.jit.ScriptModule, torch.fx.GraphModule)  # their state is source code, or compiled code
_CONFIGS = frozenset({"PreTrainedConfig", "PretrainedConfig", "GenerationConfig"})  # of transformers

ACTIVATIONS = words("""
    relu relu_ relu6 gelu silu silu_ elu elu_ selu selu_ celu leaky_relu leaky_relu_ softplus softsign mish hardswish
    hardtanh hardsigmoid tanh tanhshrink sigmoid logsigmoid softmax log_softmax softmin glu rrelu prelu tanh_ sigmoid_
    sin cos exp square normalize pairwise_distance cosine_similarity interpolate
""")

# The handful of plain things that trained models of the four libraries store beside modules.
HELPERS = HOOK_CLASSES | words("""
    torchvision.ops.boxes.box_iou torchvision.models.optical_flow.raft._pass_through_h
    torchvision.models.detection._utils.Matcher torchvision.models.detection._utils.SSDMatcher
    torchvision.models.detection._utils.BalancedPositiveNegativeSampler
    timm.models._features.FeatureInfo bayesify.nn.Ledger
""")

_VALUES: tuple[type, ...] = (list, dict, tuple, set, int, float, str, bool, complex, bytes)


def _role_of(kind: type) -> Role:
    return "call" if f"builtins.{kind.__name__}" in CONTAINER_RULES else "value"


KNOWN: dict[str, Trusted] = {
    **{name: Trusted("call") for name in (*TENSOR_RULES, *CONTAINER_RULES, *EVERYDAY_RULES, *HOOK_RULES)},
    **{f"bayesify.nn.{hook.__qualname__}": Trusted("value", hook) for hook in OWN_HOOKS},
    **{f"builtins.{kind.__name__}": Trusted(_role_of(kind), kind) for kind in _VALUES},
    "builtins.Ellipsis": Trusted("value", ...),
    "builtins.NotImplemented": Trusted("value", NotImplemented),
    "torch.Tensor": Trusted("value", torch.Tensor),
    "numpy.ndarray": Trusted("value"),
    "bayesify.programs.rebuilt": Trusted("call"),
    "torch.optim.swa_utils.AveragedModel": Trusted("module", torch.optim.swa_utils.AveragedModel),
}
