"""The estimators as pure functions of tensors, named and shaped like torch.nn.functional.

    flipout_linear(x, mean, std, bias)            lrt_conv2d(x, mean, std, bias, stride=2, padding=1)

`mean` and `std` have the shape of the plain function's weight. `bias_std` makes the bias variational. `signs` and
`batch_dim` are Flipout's: see `bayesify.estimators.flipout`. Padding is zeros; `'same'` and `'valid'` work too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch.nn.functional as F
from torch import Tensor

from .estimators import Signs, flipout, lrt
from .products import BilinearProduct, ConvProduct, LinearProduct

Size = int | Sequence[int]


def flipout_linear(
    x: Tensor, mean: Tensor, std: Tensor, bias: Tensor | None = None, *, bias_std: Tensor | None = None,
    signs: Signs = "example", batch_dim: int = 0,
) -> Tensor:  # fmt: skip
    """Flipout of `F.linear`: x (*, in), mean and std (out, in), bias (out) → (*, out). Wen et al. 2018, eq. 4."""
    return flipout(LinearProduct(), [x], mean, std, bias, bias_std, signs=signs, batch_dim=batch_dim)


def lrt_linear(
    x: Tensor, mean: Tensor, std: Tensor, bias: Tensor | None = None, *, bias_std: Tensor | None = None
) -> Tensor:
    """LRT of `F.linear`: x (*, in), mean and std (out, in), bias (out) → (*, out). Kingma et al. 2015, eq. 6."""
    return lrt(LinearProduct(), [x], mean, std, bias, bias_std)


def flipout_bilinear(
    x1: Tensor, x2: Tensor, mean: Tensor, std: Tensor, bias: Tensor | None = None, *, bias_std: Tensor | None = None,
    signs: Signs = "example", batch_dim: int = 0,
) -> Tensor:  # fmt: skip
    """Flipout of `F.bilinear`, with signs on both inputs: x1 (*, in1), x2 (*, in2), mean (out, in1, in2) → (*, out)."""
    return flipout(BilinearProduct(), [x1, x2], mean, std, bias, bias_std, signs=signs, batch_dim=batch_dim)


def lrt_bilinear(
    x1: Tensor, x2: Tensor, mean: Tensor, std: Tensor, bias: Tensor | None = None, *, bias_std: Tensor | None = None
) -> Tensor:
    """LRT of `F.bilinear`: the variance of an output is the bilinear form of the squares, x1²ᵀ std²_k x2²."""
    return lrt(BilinearProduct(), [x1, x2], mean, std, bias, bias_std)


def conv(
    x: Tensor, kernel: Sequence[int], stride: Size, padding: Size | str, dilation: Size, groups: int
) -> tuple[ConvProduct, Tensor]:
    """The product of a convolution and the input that it takes: padded here where the product cannot say how.

    Raises:
        ValueError: `padding='same'` with a stride, which torch does not define either, or an unknown word.
    """
    n = len(kernel)
    stride, dilation = _each(stride, n), _each(dilation, n)
    if not isinstance(padding, str):
        return ConvProduct(stride, _each(padding, n), dilation, groups), x
    if padding not in ("same", "valid"):
        raise ValueError(f"padding={padding!r} is neither a number nor 'same' nor 'valid'")
    if padding == "same":
        if any(step != 1 for step in stride):
            raise ValueError("padding='same' is not supported for strided convolutions")
        totals = [step * (size - 1) for step, size in zip(dilation, kernel, strict=True)]
        if all(total % 2 == 0 for total in totals):
            return ConvProduct(stride, tuple(total // 2 for total in totals), dilation, groups), x
        x = F.pad(x, [side for total in reversed(totals) for side in (total // 2, total - total // 2)])
    return ConvProduct(stride, (0,) * n, dilation, groups), x


def _each(size: Size, n: int) -> tuple[int, ...]:
    return (size,) * n if isinstance(size, int) else tuple(size) * (n // len(size))


def _flipout_conv(n: int) -> Callable[..., Tensor]:
    def flipout_conv(
        x: Tensor, mean: Tensor, std: Tensor, bias: Tensor | None = None,
        stride: Size = 1, padding: Size | str = 0, dilation: Size = 1, groups: int = 1, *,
        bias_std: Tensor | None = None, signs: Signs = "example", batch_dim: int = 0,
    ) -> Tensor:  # fmt: skip
        product, padded = conv(x, mean.shape[2:], stride, padding, dilation, groups)
        return flipout(product, [padded], mean, std, bias, bias_std, signs=signs, batch_dim=batch_dim)

    return _named(flipout_conv, f"flipout_conv{n}d", f"Flipout of `F.conv{n}d`, with `weight` as mean, std.")


def _lrt_conv(n: int) -> Callable[..., Tensor]:
    def lrt_conv(
        x: Tensor, mean: Tensor, std: Tensor, bias: Tensor | None = None,
        stride: Size = 1, padding: Size | str = 0, dilation: Size = 1, groups: int = 1, *,
        bias_std: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        product, padded = conv(x, mean.shape[2:], stride, padding, dilation, groups)
        return lrt(product, [padded], mean, std, bias, bias_std)

    return _named(lrt_conv, f"lrt_conv{n}d", f"LRT of `F.conv{n}d`, with `weight` as mean, std.")


def _flipout_conv_transpose(n: int) -> Callable[..., Tensor]:
    def flipout_conv_transpose(
        x: Tensor, mean: Tensor, std: Tensor, bias: Tensor | None = None,
        stride: Size = 1, padding: Size = 0, output_padding: Size = 0, groups: int = 1, dilation: Size = 1, *,
        bias_std: Tensor | None = None, signs: Signs = "example", batch_dim: int = 0,
    ) -> Tensor:  # fmt: skip
        product = conv_transpose(n, stride, padding, output_padding, groups, dilation)
        return flipout(product, [x], mean, std, bias, bias_std, signs=signs, batch_dim=batch_dim)

    name = f"conv_transpose{n}d"
    return _named(flipout_conv_transpose, f"flipout_{name}", f"Flipout of `F.{name}`, with `weight` as mean, std.")


def _lrt_conv_transpose(n: int) -> Callable[..., Tensor]:
    def lrt_conv_transpose(
        x: Tensor, mean: Tensor, std: Tensor, bias: Tensor | None = None,
        stride: Size = 1, padding: Size = 0, output_padding: Size = 0, groups: int = 1, dilation: Size = 1, *,
        bias_std: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        return lrt(conv_transpose(n, stride, padding, output_padding, groups, dilation), [x], mean, std, bias, bias_std)

    name = f"conv_transpose{n}d"
    return _named(lrt_conv_transpose, f"lrt_{name}", f"LRT of `F.{name}`, its arguments with `weight` as mean, std.")


def conv_transpose(
    n: int, stride: Size, padding: Size, output_padding: Size, groups: int, dilation: Size
) -> ConvProduct:
    """The product of a transposed convolution over `n` dimensions."""
    return ConvProduct(
        _each(stride, n), _each(padding, n), _each(dilation, n), groups, True, _each(output_padding, n)
    )  # fmt: skip


def _named(function: Any, name: str, doc: str) -> Callable[..., Tensor]:
    function.__name__ = function.__qualname__ = name
    function.__doc__ = doc
    return cast("Callable[..., Tensor]", function)


flipout_conv1d, flipout_conv2d, flipout_conv3d = (_flipout_conv(n) for n in (1, 2, 3))
lrt_conv1d, lrt_conv2d, lrt_conv3d = (_lrt_conv(n) for n in (1, 2, 3))
flipout_conv_transpose1d, flipout_conv_transpose2d, flipout_conv_transpose3d = (
    _flipout_conv_transpose(n) for n in (1, 2, 3)
)
lrt_conv_transpose1d, lrt_conv_transpose2d, lrt_conv_transpose3d = (_lrt_conv_transpose(n) for n in (1, 2, 3))
