"""How torch's functions spell their products: each reader takes a function's own arguments and names the product.

A reader has the parameters of its function, under torch's names, after `known`: the one among the arguments that has a
posterior. It returns None where the function does something else than multiply by that weight once.
"""

from __future__ import annotations

import string
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
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
        bias: one number for each output channel.
        oriented: the view of the weight (and of its std) that the product takes.
        added: what is added to the product, of any shape that broadcasts to it.
    """

    product: Product
    inputs: list[Tensor]
    bias: Tensor | None = None
    oriented: Callable[[Tensor], Tensor] = lambda weight: weight
    added: Tensor | None = None


Reader = Callable[..., Use | None]


def linear(known: Tensor, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Use | None:
    """F.linear."""
    return Use(LinearProduct(), [input], bias) if weight is known else None


def bilinear(known: Tensor, input1: Tensor, input2: Tensor, weight: Tensor, bias: Tensor | None = None) -> Use | None:
    """F.bilinear."""
    return Use(BilinearProduct(), [input1, input2], bias) if weight is known else None


def trilinear(
    known: Tensor, i1: Tensor, i2: Tensor, i3: Tensor, expand1: Any, expand2: Any, expand3: Any, sumdim: Any,
    unroll_dim: int = 1,
) -> Use | None:  # fmt: skip
    """torch._trilinear, as torch decomposes F.bilinear."""
    as_bilinear = [[*dims] for dims in (expand1, expand2, expand3, sumdim)] == [[1, 3], [0], [1, 2], [2, 3]]
    return Use(BilinearProduct(), [i1, i3]) if i2 is known and as_bilinear else None


def matmul(known: Tensor, input: Tensor, other: Tensor) -> Use | None:
    """torch.matmul, and `x @ w`."""
    if other is known and other.dim() == 2:
        return Use(LinearProduct(), [input], oriented=torch.t)
    dims = max(input.dim(), other.dim(), 2) - 2
    batch = _BATCH[:dims]
    left = f"{batch[dims - input.dim() + 2 :]}ik" if input.dim() > 1 else "k"
    right = f"{batch[dims - other.dim() + 2 :]}kj" if other.dim() > 1 else "k"
    output = batch + "i" * (input.dim() > 1) + "j" * (other.dim() > 1)
    if input is known:
        return _labelled(known, other, right, left, output)
    return _labelled(known, input, left, right, output) if other is known else None


def mm(known: Tensor, input: Tensor, mat2: Tensor) -> Use | None:
    """torch.mm and torch.bmm."""
    return matmul(known, input, mat2)


def addmm(known: Tensor, input: Tensor, mat1: Tensor, mat2: Tensor, *, beta: Any = 1, alpha: Any = 1) -> Use | None:
    """torch.addmm."""
    if mat2 is not known or not _ones(beta, alpha):
        return None
    if input.shape == mat2.shape[1:]:
        return Use(LinearProduct(), [mat1], input, torch.t)
    return Use(LinearProduct(), [mat1], oriented=torch.t, added=input)


def baddbmm(
    known: Tensor, input: Tensor, batch1: Tensor, batch2: Tensor, *, beta: Any = 1, alpha: Any = 1
) -> Use | None:
    """torch.baddbmm."""
    product = matmul(known, batch1, batch2) if _ones(beta, alpha) else None
    return None if product is None else replace(product, added=input)


def mv(known: Tensor, input: Tensor, vec: Tensor) -> Use | None:
    """torch.mv."""
    return matmul(known, input, vec)


def inner(known: Tensor, input: Tensor, other: Tensor) -> Use | None:
    """torch.inner: the sum over the last dimension of both."""
    return tensordot(known, input, other, ([-1], [-1])) if input.dim() and other.dim() else None


def tensordot(known: Tensor, a: Tensor, b: Tensor, dims: Any = 2, out: Any = None) -> Use | None:
    """torch.tensordot: the sum over the last `dims` dimensions of a and the first of b, or over those that it lists."""
    if isinstance(dims, int):
        dims = [*range(a.dim() - dims, a.dim())], [*range(dims)]
    listed = isinstance(dims, list | tuple) and len(dims) == 2
    if out is not None or not listed or a.dim() + b.dim() > len(string.ascii_letters):
        return None
    of_a, of_b = string.ascii_letters[: a.dim()], [*string.ascii_letters[a.dim() : a.dim() + b.dim()]]
    for left, right in zip(*dims, strict=True):
        of_b[right] = of_a[left]
    both, right_side = {*of_a} & {*of_b}, "".join(of_b)
    output = "".join(label for label in of_a + right_side if label not in both)
    if a is known:
        return _labelled(known, b, right_side, of_a, output)
    return _labelled(known, a, of_a, right_side, output) if b is known else None


def grouped_mm(
    known: Tensor, input: Tensor, mat2: Tensor, *, offs: Any = None, bias: Any = None, out_dtype: Any = None
) -> Use | None:
    """torch._grouped_mm, as mixtures of experts call it: rows sorted by expert, and a matrix for each expert."""
    if mat2 is not known or mat2.dim() != 3 or offs is None or bias is not None or out_dtype is not None:
        return None
    return Use(GroupedProduct(offs), [input])


def public_grouped_mm(
    known: Tensor, mat_a: Tensor, mat_b: Tensor, *, offs: Any = None, bias: Any = None, out_dtype: Any = None
) -> Use | None:
    """F.grouped_mm: the same under public names."""
    return grouped_mm(known, mat_a, mat_b, offs=offs, bias=bias, out_dtype=out_dtype)


def einsum(known: Tensor, equation: Any, *operands: Any) -> Use | None:
    """torch.einsum of two operands, in which no label stands twice in one operand."""
    tensors, sides = einsum_operands(operands), einsum_sides(equation)
    if len(tensors) != 2 or len(sides) != 2 or not any(tensor is known for tensor in tensors):
        return None
    at = 0 if tensors[0] is known else 1
    covered = [tensor.dim() - len(_named(side)) for tensor, side in zip(tensors, sides, strict=True)]
    if any(count < 0 or (count and "." not in side) for count, side in zip(covered, sides, strict=True)):
        return None
    dots = "".join(label for label in string.ascii_letters if label not in equation)[: max(covered)]
    full = [side.replace("...", dots[len(dots) - count :]) for side, count in zip(sides, covered, strict=True)]
    _, arrow, output = equation.replace(" ", "").partition("->")
    once = sorted(label for label in _named(sides[0] + sides[1]) if (sides[0] + sides[1]).count(label) == 1)
    output = output.replace("...", dots) if arrow else dots + "".join(once)
    return _labelled(known, tensors[1 - at], full[1 - at], full[at], output)


def convolution(
    known: Tensor, input: Tensor, weight: Tensor, bias: Tensor | None = None,
    stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1,
) -> Use | None:  # fmt: skip
    """F.conv1d to F.conv3d."""
    if weight is not known:
        return None
    product, padded = conv(input, weight.shape[2:], stride, padding, dilation, groups)
    return Use(product, [padded], bias)


def transposed_convolution(
    known: Tensor, input: Tensor, weight: Tensor, bias: Tensor | None = None,
    stride: Any = 1, padding: Any = 0, output_padding: Any = 0, groups: int = 1, dilation: Any = 1,
) -> Use | None:  # fmt: skip
    """F.conv_transpose1d to F.conv_transpose3d."""
    if weight is not known:
        return None
    return Use(conv_transpose(weight.dim() - 2, stride, padding, output_padding, groups, dilation), [input], bias)


def einsum_operands(given: Any) -> list[Any]:
    """The tensors of an einsum, which takes them one by one or as one list."""
    return list(given[0]) if len(given) == 1 and isinstance(given[0], list | tuple) else list(given)


def einsum_sides(equation: Any) -> list[str]:
    """The labels of each operand; none where a label stands twice in one, or the equation is not written as text."""
    sides = equation.replace(" ", "").partition("->")[0].split(",") if isinstance(equation, str) else []
    return sides if all(len({*_named(side)}) == len(_named(side)) for side in sides) else []


_BATCH = "abcdefgh"


def _ones(*factors: Any) -> bool:
    return all(not isinstance(factor, Tensor) and factor == 1 for factor in factors)


def _named(side: str) -> str:
    return side.replace("...", "")


def _labelled(known: Tensor, x: Tensor, of_x: str, of_weight: str, output: str) -> Use:
    """By labels; a broadcast dimension is not one of the weight, and each output is a sum over distinct weights."""
    weight_size = dict(zip(of_weight, known.shape, strict=True))
    x_size = dict(zip(of_x, x.shape, strict=True))
    broadcast = [label for label in of_weight if weight_size[label] == 1 and x_size.get(label, 1) != 1]
    kept = [dim for dim, label in enumerate(of_weight) if label not in broadcast]
    of_weight = "".join(of_weight[dim] for dim in kept)
    unit = [dim for dim, label in enumerate(of_x) if x.shape[dim] == 1 and label in of_weight]
    summed = [dim for dim, label in enumerate(of_x) if label not in of_weight + output]
    if unit or summed:
        x = x.sum([*unit, *summed])
        of_x = "".join(label for dim, label in enumerate(of_x) if dim not in (*unit, *summed))
    shape = [known.shape[dim] for dim in kept]
    return Use(EinsumProduct(of_x, of_weight, output), [x], oriented=lambda weight: weight.reshape(shape))
