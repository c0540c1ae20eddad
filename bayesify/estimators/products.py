"""Products of inputs and a weight, each linear in the weight and in every input, with their gradients.

The estimators know a layer by its product alone: what they do to it is the same for all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UsageError

Gradients = tuple[list[Tensor | None], Tensor | None, Tensor | None]


class Multiplication(Protocol):
    """A product of inputs and a weight, and its gradients."""

    def __call__(self, inputs: Sequence[Tensor], weight: Tensor, bias: Tensor | None) -> Tensor:
        """The product plus the bias."""
        ...

    def gradients(self, grad: Tensor, inputs: Sequence[Tensor], weight: Tensor, needs: Sequence[bool]) -> Gradients:
        """Gradients for (inputs, weight, bias), None where `needs` (inputs..., weight, bias) says no."""
        ...


class Product(Multiplication, Protocol):
    """What an estimator needs to know of a layer.

    Its inputs count from 0, and -1 is its output.
    """

    @property
    def flattens(self) -> bool:
        """Whether torch makes a matrix of rows of an input of more dimensions: a copy, unless it is contiguous."""
        ...

    def fan_in(self, shape: Sequence[int]) -> int:
        """How many elements of a weight of this shape one output sums.

        Of a convolution: away from the borders; of a transposed one: at stride 1.
        """
        ...

    def free_dims(self, dims: int) -> tuple[int, ...]:
        """Those of the first input's `dims` dimensions that are not the weight's, and so may hold the examples."""
        ...

    def sign_dims(self, at: int, dims: int, batch_dim: int) -> set[int]:
        """Along which of a tensor's `dims` dimensions Flipout's signs vary: its examples and its channels.

        `batch_dim` -1: no dimension has the examples.
        """
        ...


class _ExamplesLead:
    """The last `core_dims` dimensions belong to one example, and the first of them are its channels."""

    core_dims: int
    flattens = True

    def free_dims(self, dims: int) -> tuple[int, ...]:
        return tuple(range(dims - self.core_dims))

    def sign_dims(self, at: int, dims: int, batch_dim: int) -> set[int]:
        leading = dims - self.core_dims
        return {leading, batch_dim} if 0 <= batch_dim < leading else {leading}  # else there is no batch: one example


@dataclass(frozen=True)
class LinearProduct(_ExamplesLead):
    """y = x Wᵀ: x (*, in), W (out, in), y (*, out)."""

    core_dims: int = 1

    def fan_in(self, shape: Sequence[int]) -> int:
        return shape[-1]

    def __call__(self, inputs: Sequence[Tensor], weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(inputs[0], weight, bias)

    def gradients(self, grad: Tensor, inputs: Sequence[Tensor], weight: Tensor, needs: Sequence[bool]) -> Gradients:
        rows = grad.reshape(-1, grad.shape[-1])
        of_input = grad @ weight if needs[0] else None
        of_weight = rows.T @ inputs[0].reshape(-1, inputs[0].shape[-1]) if needs[1] else None
        return [of_input], of_weight, rows.sum(0) if needs[2] else None


@dataclass(frozen=True)
class BilinearProduct(_ExamplesLead):
    """y_k = x1ᵀ W_k x2: x1 (*, in1), x2 (*, in2), W (out, in1, in2), y (*, out)."""

    core_dims: int = 1

    def fan_in(self, shape: Sequence[int]) -> int:
        return shape[1] * shape[2]

    def __call__(self, inputs: Sequence[Tensor], weight: Tensor, bias: Tensor | None) -> Tensor:
        y = torch.einsum("...i,kij,...j->...k", inputs[0], weight, inputs[1])
        return y if bias is None else y + bias

    def gradients(self, grad: Tensor, inputs: Sequence[Tensor], weight: Tensor, needs: Sequence[bool]) -> Gradients:
        left, right = inputs
        rows, lefts, rights = (tensor.reshape(-1, tensor.shape[-1]) for tensor in (grad, left, right))
        of_left = torch.einsum("nk,kij,nj->ni", rows, weight, rights).view_as(left) if needs[0] else None
        of_right = torch.einsum("nk,kij,ni->nj", rows, weight, lefts).view_as(right) if needs[1] else None
        of_weight = torch.einsum("nk,ni,nj->kij", rows, lefts, rights) if needs[2] else None
        return [of_left, of_right], of_weight, rows.sum(0) if needs[3] else None


@dataclass(frozen=True)
class EinsumProduct(_ExamplesLead):
    """y = einsum(x, W), by the dimensions' labels; the example is the first label of x, or as `batch_dim` says.

    Each label stands once in each operand, so that every output is linear in distinct weights.
    """

    of_x: str
    of_weight: str
    of_output: str

    def fan_in(self, shape: Sequence[int]) -> int:
        return prod(size for label, size in zip(self.of_weight, shape, strict=True) if label not in self.of_output)

    def free_dims(self, dims: int) -> tuple[int, ...]:
        return tuple(dim for dim, label in enumerate(self.of_x) if label not in self.of_weight)

    def sign_dims(self, at: int, dims: int, batch_dim: int) -> set[int]:
        labels = self.of_output if at < 0 else self.of_x
        free = [label for label in self.of_x if label not in self.of_weight]
        signed = {*self.of_weight, *(free[batch_dim : batch_dim + 1] if batch_dim >= 0 else [])}
        return {dim for dim, label in enumerate(labels) if label in signed}

    def __call__(self, inputs: Sequence[Tensor], weight: Tensor, bias: Tensor | None) -> Tensor:
        y = torch.einsum(f"{self.of_x},{self.of_weight}->{self.of_output}", inputs[0], weight)
        return y if bias is None else y + bias

    def gradients(self, grad: Tensor, inputs: Sequence[Tensor], weight: Tensor, needs: Sequence[bool]) -> Gradients:
        of_x = self._back(self.of_weight, self.of_x, grad, weight, inputs[0]) if needs[0] else None
        of_weight = self._back(self.of_x, self.of_weight, grad, inputs[0], weight) if needs[1] else None
        of_bias = grad.reshape(-1, grad.shape[-1]).sum(0) if needs[2] else None
        return [of_x], of_weight, of_bias

    def _back(self, by: str, to: str, grad: Tensor, factor: Tensor, like: Tensor) -> Tensor:
        """A label that only `to` has was summed over: its gradient is the same all along."""
        kept = "".join(label for label in to if label in self.of_output + by)
        summed = torch.einsum(f"{self.of_output},{by}->{kept}", grad, factor)
        return summed[tuple(slice(None) if label in kept else None for label in to)].expand_as(like)


@dataclass(frozen=True, eq=False)
class GroupedProduct(_ExamplesLead):
    """y = x W_g for the rows of group g (an expert's tokens): x (rows, in), W (groups, in, out), y (rows, out).

    Group g ends before row `offsets[g]`. Each row is an example.
    """

    offsets: Tensor
    core_dims: int = 1

    def fan_in(self, shape: Sequence[int]) -> int:
        return shape[1]

    def __call__(self, inputs: Sequence[Tensor], weight: Tensor, bias: Tensor | None) -> Tensor:
        return torch._grouped_mm(inputs[0], weight, offs=self.offsets)

    def gradients(self, grad: Tensor, inputs: Sequence[Tensor], weight: Tensor, needs: Sequence[bool]) -> Gradients:
        of_input = torch._grouped_mm(grad, weight.mT, offs=self.offsets) if needs[0] else None
        of_weight = torch._grouped_mm(inputs[0].mT, grad, offs=self.offsets) if needs[1] else None
        return [of_input], of_weight, None


@dataclass(frozen=True)
class ConvProduct(_ExamplesLead):
    """A convolution or transposed convolution, padded with zeros, over any number of spatial dimensions.

    x (N, C_in, *spatial) or (C_in, *spatial); W (C_out, C_in/groups, *kernel), or transposed
    (C_in, C_out/groups, *kernel).
    """

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int = 1
    transposed: bool = False
    output_padding: tuple[int, ...] = ()
    flattens = False

    @property
    def core_dims(self) -> int:  # type: ignore[override]
        return len(self.stride) + 1

    def fan_in(self, shape: Sequence[int]) -> int:
        channels = shape[0] // self.groups if self.transposed else shape[1]
        return channels * prod(shape[2:])

    def __call__(self, inputs: Sequence[Tensor], weight: Tensor, bias: Tensor | None) -> Tensor:
        (x,) = inputs
        batched = x if x.dim() > self.core_dims else x.unsqueeze(0)
        y = torch.convolution(batched, weight, bias, *self._geometry())
        return y if batched is x else y.squeeze(0)

    def gradients(self, grad: Tensor, inputs: Sequence[Tensor], weight: Tensor, needs: Sequence[bool]) -> Gradients:
        (x,) = inputs
        unbatched = x.dim() == self.core_dims
        if unbatched:
            grad, x = grad.unsqueeze(0), x.unsqueeze(0)
        channels = [grad.shape[1]]
        of_x, of_weight, of_bias = torch.ops.aten.convolution_backward(
            grad, x, weight, channels, *self._geometry(), list(needs)
        )
        return [of_x.squeeze(0) if unbatched and of_x is not None else of_x], of_weight, of_bias

    def _geometry(self) -> tuple[list[int], list[int], list[int], bool, list[int], int]:
        output_padding = self.output_padding or (0,) * len(self.stride)
        return (
            list(self.stride), list(self.padding), list(self.dilation),
            self.transposed, list(output_padding), self.groups,
        )  # fmt: skip


Size = int | Sequence[int]


def conv(
    x: Tensor, kernel: Sequence[int], stride: Size, padding: Size | str, dilation: Size, groups: int
) -> tuple[ConvProduct, Tensor]:
    """The product of a convolution and the input that it takes: padded here where the product cannot say how.

    Raises:
        UsageError: `padding='same'` with a stride, which torch does not define either, or an unknown word.
    """
    n = len(kernel)
    stride, dilation = _each(stride, n), _each(dilation, n)
    if not isinstance(padding, str):
        return ConvProduct(stride, _each(padding, n), dilation, groups), x
    if padding not in ("same", "valid"):
        raise UsageError(f"padding={padding!r} is neither a number nor 'same' nor 'valid'")
    if padding == "same":
        if any(step != 1 for step in stride):
            raise UsageError("padding='same' is not supported for strided convolutions")
        totals = [step * (size - 1) for step, size in zip(dilation, kernel, strict=True)]
        if all(total % 2 == 0 for total in totals):
            return ConvProduct(stride, tuple(total // 2 for total in totals), dilation, groups), x
        x = F.pad(x, [side for total in reversed(totals) for side in (total // 2, total - total // 2)])
    return ConvProduct(stride, (0,) * n, dilation, groups), x


def _each(size: Size, n: int) -> tuple[int, ...]:
    return (size,) * n if isinstance(size, int) else tuple(size) * (n // len(size))


def conv_transpose(
    n: int, stride: Size, padding: Size, output_padding: Size, groups: int, dilation: Size
) -> ConvProduct:
    """The product of a transposed convolution over `n` dimensions."""
    return ConvProduct(
        _each(stride, n), _each(padding, n), _each(dilation, n), groups, True, _each(output_padding, n)
    )  # fmt: skip
