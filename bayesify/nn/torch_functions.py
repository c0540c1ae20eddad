"""The torch functions that multiply by a weight, read as the estimators' products; and those that only view one."""

from __future__ import annotations

import inspect
import operator
import string
from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..estimators.products import (
    BilinearProduct,
    EinsumProduct,
    GroupedProduct,
    LinearProduct,
    Product,
    conv,
    conv_transpose,
)


@dataclass(frozen=True)
class Use:
    """One multiplication by a weight.

    Attributes:
        product: what is computed, of `inputs` and the weight as `oriented` puts it.
        oriented: the view of the weight (and of its std) that the product takes.
    """

    product: Product
    inputs: list[Tensor]
    bias: Tensor | None = None
    oriented: Callable[[Tensor], Tensor] = lambda weight: weight


def _linear(known: Tensor, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Use | None:
    return Use(LinearProduct(), [input], bias) if weight is known else None


def _bilinear(known: Tensor, x1: Tensor, x2: Tensor, weight: Tensor, bias: Tensor | None = None) -> Use | None:
    return Use(BilinearProduct(), [x1, x2], bias) if weight is known else None


def _matmul(known: Tensor, input: Tensor, other: Tensor) -> Use | None:
    if other is known and other.dim() == 2:
        return Use(LinearProduct(), [input], oriented=torch.t)
    dims = max(input.dim(), other.dim(), 2) - 2
    batch = _BATCH[:dims]
    left = f"{batch[dims - input.dim() + 2 :]}ik" if input.dim() > 1 else "k"
    right = f"{batch[dims - other.dim() + 2 :]}kj" if other.dim() > 1 else "k"
    out = batch + "i" * (input.dim() > 1) + "j" * (other.dim() > 1)
    return _labelled(known, other, right, left, out) if input is known else _labelled(known, input, left, right, out)


def _labelled(known: Tensor, x: Tensor, of_x: str, of_weight: str, out: str) -> Use:
    """By labels; what is broadcast is no dimension of the weight, and each output is a sum over distinct weights."""
    size, its = dict(zip(of_weight, known.shape, strict=True)), dict(zip(of_x, x.shape, strict=True))
    broadcast = [label for label in of_weight if size[label] == 1 and its.get(label, 1) != 1]
    kept = [at for at, label in enumerate(of_weight) if label not in broadcast]
    of_weight = "".join(of_weight[at] for at in kept)
    alone = [dim for dim, label in enumerate(of_x) if x.shape[dim] == 1 and label in of_weight]
    summed = [dim for dim, label in enumerate(of_x) if label not in of_weight + out]
    if alone or summed:
        x = x.sum([*alone, *summed])
        of_x = "".join(label for dim, label in enumerate(of_x) if dim not in (*alone, *summed))
    shape = [known.shape[at] for at in kept]
    return Use(EinsumProduct(of_x, of_weight, out), [x], oriented=lambda weight: weight.reshape(shape))


_BATCH = "abcdefgh"


def _grouped(
    known: Tensor, input: Tensor, mat2: Tensor, *, offs: Any = None, bias: Any = None, out_dtype: Any = None
) -> Use | None:
    if mat2 is not known or mat2.dim() != 3 or offs is None or bias is not None or out_dtype is not None:
        return None
    return Use(GroupedProduct(offs), [input])


def _addmm(known: Tensor, input: Tensor, mat1: Tensor, mat2: Tensor, *, beta: Any = 1, alpha: Any = 1) -> Use | None:
    if mat2 is not known or beta != 1 or alpha != 1:
        return None
    return Use(LinearProduct(), [mat1], input, torch.t)


def _einsum(known: Tensor, equation: Any, *operands: Any) -> Use | None:
    tensors = list(operands[0]) if len(operands) == 1 and isinstance(operands[0], list | tuple) else list(operands)
    if not _readable(equation) or len(tensors) != 2:
        return None
    at = 0 if tensors[0] is known else 1
    x, dots = tensors[1 - at], ""
    labels, arrow, out = equation.replace(" ", "").partition("->")
    if "..." in labels:
        named = len(labels.split(",")[1 - at].replace("...", ""))
        dots = "".join(label for label in string.ascii_letters if label not in equation)[: x.dim() - named]
    labels = labels.replace("...", dots)
    once = "".join(sorted(label for label in set(labels) - {",", *dots} if labels.count(label) == 1))
    sides, out = labels.split(","), out.replace("...", dots) if arrow else dots + once
    return _labelled(known, x, sides[1 - at], sides[at], out) if len(sides[at]) == known.dim() else None


def _readable(equation: Any) -> bool:
    """Whether each label stands once in each of two operands, and only what is no weight has an ellipsis."""
    sides = equation.replace(" ", "").partition("->")[0].split(",") if isinstance(equation, str) else []
    return len(sides) == 2 and all(len({*(each := side.replace("...", ""))}) == len(each) for side in sides)


def _conv(
    known: Tensor, input: Tensor, weight: Tensor, bias: Tensor | None = None,
    stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1,
) -> Use | None:  # fmt: skip
    if weight is not known:
        return None
    product, padded = conv(input, weight.shape[2:], stride, padding, dilation, groups)
    return Use(product, [padded], bias)


def _conv_transpose(
    known: Tensor, input: Tensor, weight: Tensor, bias: Tensor | None = None,
    stride: Any = 1, padding: Any = 0, output_padding: Any = 0, groups: int = 1, dilation: Any = 1,
) -> Use | None:  # fmt: skip
    if weight is not known:
        return None
    return Use(conv_transpose(weight.dim() - 2, stride, padding, output_padding, groups, dilation), [input], bias)


MULTIPLICATIONS: dict[Any, Callable[..., Use | None]] = {
    F.linear: _linear,
    F.bilinear: _bilinear,
    torch.addmm: _addmm,
    torch.einsum: _einsum,
    **dict.fromkeys(
        (torch.matmul, torch.mm, torch.bmm, Tensor.matmul, Tensor.mm, Tensor.bmm, Tensor.__matmul__, operator.matmul),
        _matmul,
    ),
    **dict.fromkeys((torch._grouped_mm, F.grouped_mm), _grouped),
    **dict.fromkeys((F.conv1d, F.conv2d, F.conv3d), _conv),
    **dict.fromkeys((F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d), _conv_transpose),
}

_PLACES: dict[Any, tuple[int, str, str]] = {  # where the weight is, its name there, and that of what is only added
    F.linear: (1, "weight", "bias"), F.bilinear: (2, "weight", "bias"), torch.addmm: (2, "mat2", "input"),
    **{each: (1, "mat2", "bias") for each, reader in MULTIPLICATIONS.items() if reader is _grouped},
    **{each: (1, "weight", "bias") for each, reader in MULTIPLICATIONS.items() if reader in (_conv, _conv_transpose)},
}  # fmt: skip

_MHA = F.multi_head_attention_forward
# torch's functions that are Python over others: their bodies, that do not ask first whether they are overridden
BODIES: dict[Any, Callable[..., Any]] = {
    _MHA: FunctionType(
        _MHA.__code__, {**_MHA.__globals__, "has_torch_function": lambda tensors: False}, argdefs=_MHA.__defaults__
    ),
}
_WEIGHTS = {*(f"{name}_weight" for name in ("in_proj", "q_proj", "k_proj", "v_proj", "out_proj"))}


def is_added(function: Any, args: Any, kwargs: Any, weight: Any) -> bool:
    """Whether this argument is a product's bias."""
    if function not in _PLACES:
        return False
    at, _, bias = _PLACES[function]
    at = 0 if bias == "input" else at + 1
    return (args[at] if len(args) > at else kwargs.get(bias)) is weight


def is_factor(function: Any, args: Any, kwargs: Any, weight: Any, placed: bool = False) -> bool:
    """Whether the function multiplies by this argument, once, as its reader here reads it.

    `placed`: only where that argument of the function can be nothing but a weight.
    """
    if function in BODIES:
        given = inspect.signature(function).bind(*args, **kwargs).arguments
        return [name in _WEIGHTS for name, each in given.items() if each is weight] == [True]
    if function not in MULTIPLICATIONS or "out" in kwargs or [*args, *kwargs.values()].count(weight) != 1:
        return False
    if function in _PLACES:
        at, name, _ = _PLACES[function]
        return (args[at] if len(args) > at else kwargs.get(name)) is weight
    if function is not torch.einsum:
        return not placed
    readable = not placed and _readable(args[0]) and len(args) == 3
    return readable and "." not in args[0].partition("->")[0].split(",")[args.index(weight) - 1]


_VIEW_NAMES = (
    "t", "transpose", "permute", "view", "reshape", "contiguous", "flatten", "unflatten", "squeeze", "unsqueeze",
    "swapaxes", "movedim", "to", "type_as", "float", "half", "bfloat16", "double", "chunk", "split", "unbind",
    "__getitem__", "view_as", "reshape_as", "narrow", "type",
)  # fmt: skip
VIEWS: frozenset[Any] = frozenset(
    found
    for name in _VIEW_NAMES
    for where in (torch, Tensor)
    if callable(found := getattr(where, name, None))
) | {Tensor.T.__get__, Tensor.mT.__get__}  # type: ignore[attr-defined]

_AS = (Tensor.to, Tensor.type_as, Tensor.view_as, Tensor.reshape_as)


def only_likens(function: Any, args: Any, weight: Any) -> bool:
    """Whether the function gives another tensor the weight's dtype, device or shape, and takes nothing else of it."""
    return function in _AS and bool(args) and args[0] is not weight


_BY: dict[str, frozenset[Any]] = {
    kind: frozenset(
        found for name in names for where in (torch, Tensor, operator) if callable(found := getattr(where, name, None))
    )
    for kind, names in {
        "times": ("mul", "multiply", "__mul__", "__rmul__"),
        "over": ("div", "divide", "true_divide", "truediv", "__truediv__"),
    }.items()
}


def scales(function: Any, args: Any, weight: Any) -> bool:
    """Whether the function multiplies the weight, or divides it, element by element: as much as its std."""
    return function in _BY["times"] or (function in _BY["over"] and args[0] is weight)


LOOK_UPS = frozenset((F.embedding, torch.embedding, F.embedding_bag))
_HARMLESS_NAMES = ("size", "dim", "numel", "stride", "is_contiguous", "storage_offset", "is_floating_point", "__len__")
_HARMLESS_PROPERTIES = ("shape", "dtype", "device", "ndim", "requires_grad", "is_cuda", "is_nested", "layout", "grad")
_HARMLESS: frozenset[Any] = frozenset(
    [*(getattr(Tensor, name) for name in _HARMLESS_NAMES)]
    + [getattr(Tensor, name).__get__ for name in _HARMLESS_PROPERTIES]
    + [*LOOK_UPS]  # of a tied weight, which take its mean
)


def harmless(func: Any) -> bool:
    """Whether the function asks a weight for its form only, or looks rows up."""
    return func in _HARMLESS
