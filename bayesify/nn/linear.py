"""Linear and Bilinear."""

from __future__ import annotations

from torch import Tensor, nn

from ..estimators.products import BilinearProduct, LinearProduct
from ..estimators.small_linear import small_flipout, small_lrt
from .base import LRT, Flipout
from .layer_kinds import LayerKind, describe
from .lazy import LazyVariational

__all__ = [
    "FlipoutBilinear",
    "FlipoutLinear",
    "LRTBilinear",
    "LRTLinear",
    "LazyFlipoutLinear",
    "LazyLRTLinear",
]


_LINEAR = LinearProduct()


class LinearFamily:
    """y = x Wᵀ + b on any number of leading dimensions."""

    def product(self, input: Tensor) -> tuple[LinearProduct, list[Tensor]]:
        return _LINEAR, [input]


class BilinearFamily:
    """y_k = x1ᵀ W_k x2 + b_k on any number of leading dimensions."""

    def product(self, input1: Tensor, input2: Tensor) -> tuple[BilinearProduct, list[Tensor]]:
        return BilinearProduct(), [input1, input2]


class FlipoutLinear(Flipout, LinearFamily, nn.Linear):
    """nn.Linear under Flipout."""

    small = staticmethod(small_flipout)


class LRTLinear(LRT, LinearFamily, nn.Linear):
    """nn.Linear under local reparameterization: exact for input (batch, in)."""

    small = staticmethod(small_lrt)


class FlipoutBilinear(Flipout, BilinearFamily, nn.Bilinear):
    """nn.Bilinear under Flipout, with signs on both inputs."""


class LRTBilinear(LRT, BilinearFamily, nn.Bilinear):
    """nn.Bilinear under local reparameterization: the variance is the bilinear form of the squares."""


class LazyFlipoutLinear(LazyVariational, Flipout, LinearFamily, nn.LazyLinear):
    """nn.LazyLinear under Flipout."""

    cls_to_become = FlipoutLinear


class LazyLRTLinear(LazyVariational, LRT, LinearFamily, nn.LazyLinear):
    """nn.LazyLinear under local reparameterization."""

    cls_to_become = LRTLinear


describe(nn.Linear, LayerKind(computes=True, maskable=True))
describe(nn.Bilinear, LayerKind(product=lambda layer: BilinearProduct(), computes=True, maskable=True))
