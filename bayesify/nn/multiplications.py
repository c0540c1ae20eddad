"""The torch functions that multiply by a weight, read as the estimators' products; and those that only view one."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..functional import conv, conv_transpose
from ..products import BilinearProduct, EinsumProduct, GroupedProduct, LinearProduct, Product


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
    x = input if other is known else other
    if x.dim() < 2:
        return None
    dims = max(input.dim(), other.dim()) - 2
    left, right = (_BATCH[max(dims - each.dim() + 2, 0) : dims] for each in (input, other))
    rows, columns = "i" if input.dim() > 1 else "", "j" if other.dim() > 1 else ""
    left, right, out = f"{left}{rows}k", f"{right}k{columns}", f"{_BATCH[:dims]}{rows}{columns}"
    return Use(EinsumProduct(*((left, right) if x is input else (right, left)), out), [x])


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
    if not isinstance(equation, str) or len(tensors) != 2:
        return None
    sides, arrow, out = equation.replace(" ", "").partition("->")
    labels = sides.split(",")
    if not arrow or "." in equation or any(len(set(each)) != len(each) for each in labels):
        return None
    at = 0 if tensors[0] is known else 1
    (of_x, of_weight), x = (labels[1 - at], labels[at]), tensors[1 - at]
    summed = [dim for dim, label in enumerate(of_x) if label not in of_weight + out]
    if summed:  # first, since each output must be a sum over distinct weights
        x, of_x = x.sum(summed), "".join(label for label in of_x if label in of_weight + out)
    return Use(EinsumProduct(of_x, of_weight, out), [x])


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

_MHA = F.multi_head_attention_forward
# torch's functions that are Python over others: their bodies, that do not ask first whether they are overridden
BODIES: dict[Any, Callable[..., Any]] = {
    _MHA: FunctionType(
        _MHA.__code__, {**_MHA.__globals__, "has_torch_function": lambda tensors: False}, argdefs=_MHA.__defaults__
    ),
}
_WEIGHTS = {*(f"{name}_weight" for name in ("in_proj", "q_proj", "k_proj", "v_proj", "out_proj"))}


def multiplies(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], weight: Any) -> bool:
    """Whether the function is given the weight once, where it multiplies by it."""
    if func not in BODIES:
        return func in MULTIPLICATIONS and sum(each is weight for each in (*args, *kwargs.values())) == 1
    given = inspect.signature(func).bind(*args, **kwargs).arguments
    names = [name for name, each in given.items() if each is weight]
    return len(names) == 1 and names[0] in _WEIGHTS


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
