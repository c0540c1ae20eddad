"""Conv1d-3d and ConvTranspose1d-3d."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import Tensor, nn

from ..estimators.products import ConvProduct, conv
from .base import LRT, Flipout
from .layer_kinds import LayerKind, describe
from .lazy import LazyVariational

__all__ = [
    "FlipoutConv1d",
    "FlipoutConv2d",
    "FlipoutConv3d",
    "FlipoutConvTranspose1d",
    "FlipoutConvTranspose2d",
    "FlipoutConvTranspose3d",
    "LRTConv1d",
    "LRTConv2d",
    "LRTConv3d",
    "LRTConvTranspose1d",
    "LRTConvTranspose2d",
    "LRTConvTranspose3d",
    "LazyFlipoutConv1d",
    "LazyFlipoutConv2d",
    "LazyFlipoutConv3d",
    "LazyFlipoutConvTranspose1d",
    "LazyFlipoutConvTranspose2d",
    "LazyFlipoutConvTranspose3d",
    "LazyLRTConv1d",
    "LazyLRTConv2d",
    "LazyLRTConv3d",
    "LazyLRTConvTranspose1d",
    "LazyLRTConvTranspose2d",
    "LazyLRTConvTranspose3d",
]

if TYPE_CHECKING:
    _Conv = nn.modules.conv._ConvNd
    _ConvTranspose = nn.modules.conv._ConvTransposeNd
else:
    _Conv = _ConvTranspose = object


class ConvFamily(_Conv):
    """A convolution over 1 to 3 dimensions, batched or not."""

    def product(self, input: Tensor) -> tuple[ConvProduct, list[Tensor]]:
        padding: Any = self.padding
        if self.padding_mode != "zeros":
            input, padding = F.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode), 0
        product, padded = conv(input, self.kernel_size, self.stride, padding, self.dilation, self.groups)
        return product, [padded]


class ConvTransposeFamily(_ConvTranspose):
    """A transposed convolution over 1 to 3 dimensions, batched or not."""

    def product(self, input: Tensor, output_size: list[int] | None = None) -> tuple[ConvProduct, list[Tensor]]:
        geometry: Any = self.stride, self.padding, self.kernel_size, len(self.kernel_size), self.dilation
        output_padding = tuple(self._output_padding(input, output_size, *geometry))
        stride, padding, *_, dilation = geometry
        return ConvProduct(stride, padding, dilation, self.groups, True, output_padding), [input]


class FlipoutConv1d(Flipout, ConvFamily, nn.Conv1d):
    """nn.Conv1d under Flipout."""


class LazyFlipoutConv1d(LazyVariational, Flipout, ConvFamily, nn.LazyConv1d):
    """nn.LazyConv1d under Flipout."""

    cls_to_become = FlipoutConv1d


class LRTConv1d(LRT, ConvFamily, nn.Conv1d):
    """nn.Conv1d under local reparameterization, which ignores that outputs share a kernel."""


class LazyLRTConv1d(LazyVariational, LRT, ConvFamily, nn.LazyConv1d):
    """nn.LazyConv1d under local reparameterization, which ignores that outputs share a kernel."""

    cls_to_become = LRTConv1d


class FlipoutConv2d(Flipout, ConvFamily, nn.Conv2d):
    """nn.Conv2d under Flipout."""


class LazyFlipoutConv2d(LazyVariational, Flipout, ConvFamily, nn.LazyConv2d):
    """nn.LazyConv2d under Flipout."""

    cls_to_become = FlipoutConv2d


class LRTConv2d(LRT, ConvFamily, nn.Conv2d):
    """nn.Conv2d under local reparameterization, which ignores that outputs share a kernel."""


class LazyLRTConv2d(LazyVariational, LRT, ConvFamily, nn.LazyConv2d):
    """nn.LazyConv2d under local reparameterization, which ignores that outputs share a kernel."""

    cls_to_become = LRTConv2d


class FlipoutConv3d(Flipout, ConvFamily, nn.Conv3d):
    """nn.Conv3d under Flipout."""


class LazyFlipoutConv3d(LazyVariational, Flipout, ConvFamily, nn.LazyConv3d):
    """nn.LazyConv3d under Flipout."""

    cls_to_become = FlipoutConv3d


class LRTConv3d(LRT, ConvFamily, nn.Conv3d):
    """nn.Conv3d under local reparameterization, which ignores that outputs share a kernel."""


class LazyLRTConv3d(LazyVariational, LRT, ConvFamily, nn.LazyConv3d):
    """nn.LazyConv3d under local reparameterization, which ignores that outputs share a kernel."""

    cls_to_become = LRTConv3d


class FlipoutConvTranspose1d(Flipout, ConvTransposeFamily, nn.ConvTranspose1d):
    """nn.ConvTranspose1d under Flipout."""


class LazyFlipoutConvTranspose1d(LazyVariational, Flipout, ConvTransposeFamily, nn.LazyConvTranspose1d):
    """nn.LazyConvTranspose1d under Flipout."""

    cls_to_become = FlipoutConvTranspose1d


class LRTConvTranspose1d(LRT, ConvTransposeFamily, nn.ConvTranspose1d):
    """nn.ConvTranspose1d under local reparameterization, which ignores that outputs share a kernel."""


class LazyLRTConvTranspose1d(LazyVariational, LRT, ConvTransposeFamily, nn.LazyConvTranspose1d):
    """nn.LazyConvTranspose1d under local reparameterization, which ignores that outputs share a kernel."""

    cls_to_become = LRTConvTranspose1d


class FlipoutConvTranspose2d(Flipout, ConvTransposeFamily, nn.ConvTranspose2d):
    """nn.ConvTranspose2d under Flipout."""


class LazyFlipoutConvTranspose2d(LazyVariational, Flipout, ConvTransposeFamily, nn.LazyConvTranspose2d):
    """nn.LazyConvTranspose2d under Flipout."""

    cls_to_become = FlipoutConvTranspose2d


class LRTConvTranspose2d(LRT, ConvTransposeFamily, nn.ConvTranspose2d):
    """nn.ConvTranspose2d under local reparameterization, which ignores that outputs share a kernel."""


class LazyLRTConvTranspose2d(LazyVariational, LRT, ConvTransposeFamily, nn.LazyConvTranspose2d):
    """nn.LazyConvTranspose2d under local reparameterization, which ignores that outputs share a kernel."""

    cls_to_become = LRTConvTranspose2d


class FlipoutConvTranspose3d(Flipout, ConvTransposeFamily, nn.ConvTranspose3d):
    """nn.ConvTranspose3d under Flipout."""


class LazyFlipoutConvTranspose3d(LazyVariational, Flipout, ConvTransposeFamily, nn.LazyConvTranspose3d):
    """nn.LazyConvTranspose3d under Flipout."""

    cls_to_become = FlipoutConvTranspose3d


class LRTConvTranspose3d(LRT, ConvTransposeFamily, nn.ConvTranspose3d):
    """nn.ConvTranspose3d under local reparameterization, which ignores that outputs share a kernel."""


class LazyLRTConvTranspose3d(LazyVariational, LRT, ConvTransposeFamily, nn.LazyConvTranspose3d):
    """nn.LazyConvTranspose3d under local reparameterization, which ignores that outputs share a kernel."""

    cls_to_become = LRTConvTranspose3d


def _geometry(layer: Any) -> ConvProduct:
    """The layer's product; its padding may depend on the input and is left out."""
    return ConvProduct(layer.stride, (0,) * len(layer.stride), layer.dilation, layer.groups, layer.transposed)


describe(
    nn.modules.conv._ConvNd,
    LayerKind(product=_geometry, computes=True, maskable=True, lrt="LRT ignores that all positions share one kernel"),
)
