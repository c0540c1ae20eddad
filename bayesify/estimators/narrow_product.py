"""The product with the noise in a narrower dtype than that of the weights: an error of the noise alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .products import Gradients, Multiplication, Product


@dataclass(frozen=True, eq=False)
class NarrowProduct:
    """Another product, computed in this dtype, its results of the dtype of what it is given."""

    product: Product
    dtype: torch.dtype

    def __call__(self, inputs: Sequence[Tensor], weight: Tensor, bias: Tensor | None) -> Tensor:
        """The product plus the bias."""
        narrow_bias = None if bias is None else bias.to(self.dtype)
        return self.product(self._narrow(inputs), weight.to(self.dtype), narrow_bias).to(inputs[0].dtype)

    def gradients(self, grad: Tensor, inputs: Sequence[Tensor], weight: Tensor, needs: Sequence[bool]) -> Gradients:
        """As the product's own."""
        (narrow,) = self._narrow([grad])
        of_inputs, *others = self.product.gradients(narrow, self._narrow(inputs), weight.to(self.dtype), needs)
        of_weight, of_bias = (None if own is None else own.to(weight.dtype) for own in others)
        return [None if own is None else own.to(grad.dtype) for own in of_inputs], of_weight, of_bias

    def _narrow(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        return [tensor.to(self.dtype) for tensor in tensors]


def of_noise(product: Product, dtype: torch.dtype | None, wide: Tensor) -> Multiplication:
    """The product as it is computed with the noise: in this dtype, where that is narrower than that of `wide`."""
    narrower = dtype is not None and dtype.itemsize < wide.dtype.itemsize
    return NarrowProduct(product, dtype) if narrower and dtype is not None else product
