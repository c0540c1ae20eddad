"""The strings in an exported program that torch would look up: operators, and the structures of inputs."""

from __future__ import annotations

import json
import keyword
import re
from typing import Any

import torch

from ...errors import FileRefusedError
from .operator_names import ATEN, PRIMS, TORCHVISION

_OPERATOR = re.compile(r"torch\.ops\.(aten|prims|torchvision)\.(\w+)\.(\w+)", re.ASCII)
_NAMES = {"aten": ATEN, "prims": PRIMS, "torchvision": TORCHVISION}
_SYMBOLIC = re.compile(r"torch\._?sym_\w+", re.ASCII)
_PYTHON = re.compile(
    r"_operator\.(getitem|add|sub|mul|truediv|floordiv|mod|neg|pow|pos|abs|l[te]|g[te]|eq|ne|and_|or_|not_)"
)
_MATH = re.compile(r"math\.(ceil|floor|trunc|sqrt|log2?|exp|pow|sin|cos|tan|asin|acos|atan|sinh|cosh|tanh)")
_HIGHER = re.compile(r"torch\.ops\.higher_order\.(wrap_with_set_grad_enabled|wrap_with_autocast|cond)")
_CONTAINERS = ("builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict")


def refuse_operator(target: str) -> None:
    """Refuse any operation that is not one of torch's that are listed, or of Python's on numbers.

    Raises:
        FileRefusedError: another one.
    """
    match = _OPERATOR.fullmatch(target)
    if match and match[2] in _NAMES[match[1]] and _is_of_tensors(*match.groups()):
        return
    if any(form.fullmatch(target) for form in (_SYMBOLIC, _PYTHON, _MATH, _HIGHER)):
        return
    raise FileRefusedError(f"its program calls {target[:80]!r}, not an operator that programs may call; refused")


def _is_of_tensors(space: str, name: str, overload: str) -> bool:
    """Whether it is no overload of TorchScript's: for numbers, texts and lists alone, where a division by zero kills.

    One that torch cannot write as Python is none either; what this torch has not, its reader refuses.
    """
    found = getattr(getattr(getattr(torch.ops, space), name, None), overload, None)
    if found is None or keyword.iskeyword(overload):
        return not keyword.iskeyword(overload)
    values = [*found._schema.arguments, *found._schema.returns]
    return not found._schema.returns or any("Tensor" in str(value.type) for value in values)


def plain_structure(text: str) -> str:
    """A structure of inputs or outputs as tuples, lists and dicts: objects of other classes become dicts or tuples.

    Raises:
        ValueError, TypeError, KeyError: it is not a structure that torch writes.
    """
    version, spec = json.loads(text)
    return json.dumps([int(version), _plain(spec)])


def _plain(spec: dict[str, Any]) -> dict[str, Any]:
    children = [_plain(child) for child in spec["children_spec"]]
    kind, context = spec["type"], spec["context"]
    if kind is None:
        return {"type": None, "context": None, "children_spec": []}
    keys = _keys(json.loads(context), len(children)) if isinstance(context, str) and kind != "builtins.tuple" else None
    if kind not in _CONTAINERS:
        kind = "builtins.dict" if keys is not None else "builtins.tuple"
    if keys is not None and kind in ("builtins.dict", "collections.OrderedDict"):
        return {"type": kind, "context": json.dumps(keys), "children_spec": children}
    if kind in ("builtins.dict", "collections.OrderedDict"):
        raise ValueError("a dict with keys that are not plain values")
    return {"type": kind, "context": "null", "children_spec": children}


def _keys(context: Any, size: int) -> list[Any] | None:
    """The keys of a dict, or of an object whose fields torch lists like one: transformers' outputs, [fields, ...]."""
    if isinstance(context, list) and len(context) != size and context and isinstance(context[0], list):
        context = context[0]
    plain = isinstance(context, list) and len(context) == size
    return context if plain and all(type(key) in (str, int, float, bool) for key in context) else None
