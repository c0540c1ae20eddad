"""A model's output: which part of it is measured, and what the structure around that part is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from ..errors import UsageError, did_you_mean
from .prediction import is_float


def picked(output: Any, name: str | int | None) -> Any:
    """The part of an output that `name` says: a key, an attribute, or a place. The whole where it is None.

    Raises:
        UsageError: the output has no such part.
    """
    if name is None:
        return output
    if isinstance(output, Mapping) and name in output:
        return output[name]
    if isinstance(name, str) and not isinstance(output, Tensor) and hasattr(output, name):
        return getattr(output, name)
    if isinstance(name, int) and isinstance(output, tuple | list) and -len(output) <= name < len(output):
        return output[name]
    if isinstance(name, int) and isinstance(output, Mapping) and -len(output) <= name < len(output):
        return list(output.values())[name]
    near = did_you_mean(str(name), _parts(output))
    raise UsageError(f"the output, {_described(output)}, has no part {name!r}.{near}")


def one_tensor(output: Any, name: str | int | None) -> Tensor:
    """The tensor of an output that targets are held against: the part that `name` says, or the only one there is.

    Raises:
        UsageError: the part is no floating point tensor, or has several.
    """
    part = picked(output, name)
    floats = [leaf for leaf in pytree.tree_leaves(part) if is_float(leaf)]
    if len(floats) != 1:
        raise UsageError(
            f"the output is {_described(part)}: name the tensor that targets are held against by output= (on the "
            "command line --part)"
        )
    return floats[0]  # type: ignore[no-any-return]


def flattened(output: Any, of: str) -> tuple[list[Any], pytree.TreeSpec]:
    """The leaves and the structure.

    Raises:
        UsageError: no leaf is a floating point tensor.
    """
    leaves, structure = pytree.tree_flatten(output)
    if not any(is_float(leaf) for leaf in leaves):
        raise UsageError(
            f"the output of {of}, {_described(output)}, holds no floating point tensor: name the part to predict by "
            "output=, a key, an attribute or a place"
        )
    return leaves, structure


def _described(output: Any) -> str:
    if isinstance(output, Tensor):
        return f"a tensor {tuple(output.shape)} of {output.dtype}"
    parts = _parts(output)
    return f"a {type(output).__name__}" + (f" of {', '.join(parts)}" if parts else "")


def _parts(output: Any) -> list[str]:
    if isinstance(output, Mapping):
        return [str(key) for key in output]
    if isinstance(output, tuple | list):
        return [str(at) for at in range(len(output))]
    return [name for name in getattr(output, "__dict__", {}) if not name.startswith("_")]
