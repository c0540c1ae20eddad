"""The estimators as pure functions of tensors, named and shaped like torch.nn.functional.

    flipout_linear(x, mean, std, bias)            lrt_conv2d(x, mean, std, bias, stride=2, padding=1)

`mean` and `std` have the shape of the plain function's weight. `bias_std` makes the bias variational. `signs` and
`batch_dim` are Flipout's: see `bayesify.estimators.flipout`. Padding is with zeros; `'same'` and `'valid'` work too.
The sources: Flipout is Wen et al. 2018, eq. 4; local reparameterization (LRT) is Kingma et al. 2015, eq. 6.
"""

from __future__ import annotations

from torch import Tensor

from .estimators.flipout import Signs, flipout
from .estimators.lrt import lrt
from .estimators.products import BilinearProduct, LinearProduct, Size, conv, conv_transpose


def flipout_linear(
    x: Tensor, mean: Tensor, std: Tensor, bias: Tensor | None = None, *,
    bias_std: Tensor | None = None, signs: Signs = "example", batch_dim: int = 0,
) -> Tensor:  # fmt: skip
    """Flipout of `F.linear`: x (*, in), mean and std (out, in), bias (out) → (*, out)."""
    return flipout(LinearProduct(), [x], mean, std, bias, bias_std, signs=signs, batch_dim=batch_dim)


def lrt_linear(
    x: Tensor, mean: Tensor, std: Tensor, bias: Tensor | None = None, *, bias_std: Tensor | None = None
) -> Tensor:
    """LRT of `F.linear`: x (*, in), mean and std (out, in), bias (out) → (*, out)."""
    return lrt(LinearProduct(), [x], mean, std, bias, bias_std)


def flipout_bilinear(
    x1: Tensor, x2: Tensor, mean: Tensor, std: Tensor, bias: Tensor | None = None, *,
    bias_std: Tensor | None = None, signs: Signs = "example", batch_dim: int = 0,
) -> Tensor:  # fmt: skip
    """Flipout of `F.bilinear`, with signs on both inputs: x1 (*, in1), x2 (*, in2), mean (out, in1, in2) → (*, out)."""
    return flipout(BilinearProduct(), [x1, x2], mean, std, bias, bias_std, signs=signs, batch_dim=batch_dim)


def lrt_bilinear(
    x1: Tensor, x2: Tensor, mean: Tensor, std: Tensor, bias: Tensor | None = None, *, bias_std: Tensor | None = None
) -> Tensor:
    """LRT of `F.bilinear`: the variance of an output is the bilinear form of the squares, x1²ᵀ std²_k x2²."""
    return lrt(BilinearProduct(), [x1, x2], mean, std, bias, bias_std)


def flipout_conv1d(
    x: Tensor, mean: Tensor, std: Tensor, bias: Tensor | None = None,
    stride: Size = 1, padding: Size | str = 0, dilation: Size = 1, groups: int = 1, *,
    bias_std: Tensor | None = None, signs: Signs = "example", batch_dim: int = 0,
) -> Tensor:  # fmt: skip
    """Flipout of `F.conv1d`: x (N, C_in, L) or (C_in, L), mean and std (C_out, C_in/groups, kL)."""
    product, padded = conv(x, mean.shape[2:], stride, padding, dilation, groups)
    return flipout(product, [padded], mean, std, bias, bias_std, signs=signs, batch_dim=batch_dim)


def lrt_conv1d(
    x: Tensor, mean: Tensor, std: Tensor, bias: Tensor | None = None,
    stride: Size = 1, padding: Size | str = 0, dilation: Size = 1, groups: int = 1, *,
    bias_std: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """LRT of `F.conv1d`: x (N, C_in, L) or (C_in, L), mean and std (C_out, C_in/groups, kL)."""
    product, padded = conv(x, mean.shape[2:], stride, padding, dilation, groups)
    return lrt(product, [padded], mean, std, bias, bias_std)


def flipout_conv2d(
    x: Tensor, mean: Tensor, std: Tensor, bias: Tensor | None = None,
    stride: Size = 1, padding: Size | str = 0, dilation: Size = 1, groups: int = 1, *,
    bias_std: Tensor | None = None, signs: Signs = "example", batch_dim: int = 0,
) -> Tensor:  # fmt: skip
    """Flipout of `F.conv2d`: x (N, C_in, H, W) or (C_in, H, W), mean and std (C_out, C_in/groups, kH, kW)."""
    product, padded = conv(x, mean.shape[2:], stride, padding, dilation, groups)
    return flipout(product, [padded], mean, std, bias, bias_std, signs=signs, batch_dim=batch_dim)


def lrt_conv2d(
    x: Tensor, mean: Tensor, std: Tensor, bias: Tensor | None = None,
    stride: Size = 1, padding: Size | str = 0, dilation: Size = 1, groups: int = 1, *,
    bias_std: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """LRT of `F.conv2d`: x (N, C_in, H, W) or (C_in, H, W), mean and std (C_out, C_in/groups, kH, kW)."""
    product, padded = conv(x, mean.shape[2:], stride, padding, dilation, groups)
    return lrt(product, [padded], mean, std, bias, bias_std)


def flipout_conv3d(
    x: Tensor, mean: Tensor, std: Tensor, bias: Tensor | None = None,
    stride: Size = 1, padding: Size | str = 0, dilation: Size = 1, groups: int = 1, *,
    bias_std: Tensor | None = None, signs: Signs = "example", batch_dim: int = 0,
) -> Tensor:  # fmt: skip
    """Flipout of `F.conv3d`: x (N, C_in, D, H, W) or (C_in, D, H, W), mean and std (C_out, C_in/groups, kD, kH, kW)."""
    product, padded = conv(x, mean.shape[2:], stride, padding, dilation, groups)
    return flipout(product, [padded], mean, std, bias, bias_std, signs=signs, batch_dim=batch_dim)


def lrt_conv3d(
    x: Tensor, mean: Tensor, std: Tensor, bias: Tensor | None = None,
    stride: Size = 1, padding: Size | str = 0, dilation: Size = 1, groups: int = 1, *,
    bias_std: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """LRT of `F.conv3d`: x (N, C_in, D, H, W) or (C_in, D, H, W), mean and std (C_out, C_in/groups, kD, kH, kW)."""
    product, padded = conv(x, mean.shape[2:], stride, padding, dilation, groups)
    return lrt(product, [padded], mean, std, bias, bias_std)


def flipout_conv_transpose1d(
    x: Tensor, mean: Tensor, std: Tensor, bias: Tensor | None = None,
    stride: Size = 1, padding: Size = 0, output_padding: Size = 0, groups: int = 1, dilation: Size = 1, *,
    bias_std: Tensor | None = None, signs: Signs = "example", batch_dim: int = 0,
) -> Tensor:  # fmt: skip
    """Flipout of `F.conv_transpose1d`: x (N, C_in, L) or unbatched, mean (C_in, C_out/groups, kL)."""
    product = conv_transpose(1, stride, padding, output_padding, groups, dilation)
    return flipout(product, [x], mean, std, bias, bias_std, signs=signs, batch_dim=batch_dim)


def lrt_conv_transpose1d(
    x: Tensor, mean: Tensor, std: Tensor, bias: Tensor | None = None,
    stride: Size = 1, padding: Size = 0, output_padding: Size = 0, groups: int = 1, dilation: Size = 1, *,
    bias_std: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """LRT of `F.conv_transpose1d`: x (N, C_in, L) or unbatched, mean (C_in, C_out/groups, kL)."""
    product = conv_transpose(1, stride, padding, output_padding, groups, dilation)
    return lrt(product, [x], mean, std, bias, bias_std)


def flipout_conv_transpose2d(
    x: Tensor, mean: Tensor, std: Tensor, bias: Tensor | None = None,
    stride: Size = 1, padding: Size = 0, output_padding: Size = 0, groups: int = 1, dilation: Size = 1, *,
    bias_std: Tensor | None = None, signs: Signs = "example", batch_dim: int = 0,
) -> Tensor:  # fmt: skip
    """Flipout of `F.conv_transpose2d`: x (N, C_in, H, W) or unbatched, mean (C_in, C_out/groups, kH, kW)."""
    product = conv_transpose(2, stride, padding, output_padding, groups, dilation)
    return flipout(product, [x], mean, std, bias, bias_std, signs=signs, batch_dim=batch_dim)


def lrt_conv_transpose2d(
    x: Tensor, mean: Tensor, std: Tensor, bias: Tensor | None = None,
    stride: Size = 1, padding: Size = 0, output_padding: Size = 0, groups: int = 1, dilation: Size = 1, *,
    bias_std: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """LRT of `F.conv_transpose2d`: x (N, C_in, H, W) or unbatched, mean (C_in, C_out/groups, kH, kW)."""
    product = conv_transpose(2, stride, padding, output_padding, groups, dilation)
    return lrt(product, [x], mean, std, bias, bias_std)


def flipout_conv_transpose3d(
    x: Tensor, mean: Tensor, std: Tensor, bias: Tensor | None = None,
    stride: Size = 1, padding: Size = 0, output_padding: Size = 0, groups: int = 1, dilation: Size = 1, *,
    bias_std: Tensor | None = None, signs: Signs = "example", batch_dim: int = 0,
) -> Tensor:  # fmt: skip
    """Flipout of `F.conv_transpose3d`: x (N, C_in, D, H, W) or unbatched, mean (C_in, C_out/groups, kD, kH, kW)."""
    product = conv_transpose(3, stride, padding, output_padding, groups, dilation)
    return flipout(product, [x], mean, std, bias, bias_std, signs=signs, batch_dim=batch_dim)


def lrt_conv_transpose3d(
    x: Tensor, mean: Tensor, std: Tensor, bias: Tensor | None = None,
    stride: Size = 1, padding: Size = 0, output_padding: Size = 0, groups: int = 1, dilation: Size = 1, *,
    bias_std: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """LRT of `F.conv_transpose3d`: x (N, C_in, D, H, W) or unbatched, mean (C_in, C_out/groups, kD, kH, kW)."""
    product = conv_transpose(3, stride, padding, output_padding, groups, dilation)
    return lrt(product, [x], mean, std, bias, bias_std)
