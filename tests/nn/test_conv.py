"""Conv1d-3d and ConvTranspose1d-3d: the contract, and every option of the plain layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bayesify.nn as variational_nn
from bayesify.nn.settings import Method
from tests.contract import LayerContract
from tests.support import METHODS, assert_moments, covariance, draws, judge, judge_mean, noisy, quiet, variational

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")  # by the plain layer

Shape = tuple[int, ...]


class TestConv1d(LayerContract):
    def plain(self) -> nn.Module:
        return nn.Conv1d(4, 6, 3, stride=2, padding=1, groups=2)

    def inputs(self, examples: int) -> tuple[Tensor, ...]:
        return (torch.randn(examples, 4, 7),)


class TestConv2d(LayerContract):
    def plain(self) -> nn.Module:
        return nn.Conv2d(2, 3, 3, padding=1)

    def inputs(self, examples: int) -> tuple[Tensor, ...]:
        return (torch.randn(examples, 2, 4, 3),)


class TestConv3d(LayerContract):
    def plain(self) -> nn.Module:
        return nn.Conv3d(2, 2, 2, padding=(1, 0, 0))

    def inputs(self, examples: int) -> tuple[Tensor, ...]:
        return (torch.randn(examples, 2, 2, 3, 3),)


class TestConvTranspose1d(LayerContract):
    def plain(self) -> nn.Module:
        return nn.ConvTranspose1d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2)

    def inputs(self, examples: int) -> tuple[Tensor, ...]:
        return (torch.randn(examples, 4, 4),)


class TestConvTranspose2d(LayerContract):
    def plain(self) -> nn.Module:
        return nn.ConvTranspose2d(2, 3, 3, stride=2, padding=1)

    def inputs(self, examples: int) -> tuple[Tensor, ...]:
        return (torch.randn(examples, 2, 3, 2),)


class TestConvTranspose3d(LayerContract):
    def plain(self) -> nn.Module:
        return nn.ConvTranspose3d(2, 2, 2, stride=(1, 2, 1))

    def inputs(self, examples: int) -> tuple[Tensor, ...]:
        return (torch.randn(examples, 2, 1, 2, 2),)


CONVOLUTIONS: dict[str, tuple[nn.Module, Shape]] = {
    "stride": (nn.Conv2d(2, 3, 3, stride=(2, 1)), (5, 4)),
    "padding": (nn.Conv2d(2, 3, 3, padding=(2, 1)), (3, 3)),
    "valid": (nn.Conv2d(2, 3, 2, padding="valid"), (4, 3)),
    "same": (nn.Conv2d(2, 3, 3, padding="same"), (4, 3)),
    "same, even kernel": (nn.Conv2d(2, 3, (2, 4), padding="same"), (3, 4)),
    "same, even kernel and dilation": (nn.Conv2d(2, 3, (2, 3), padding="same", dilation=(3, 2)), (4, 4)),
    "same, 1d": (nn.Conv1d(2, 3, 4, padding="same", dilation=3), (7,)),
    "same, 3d": (nn.Conv3d(1, 2, (2, 1, 3), padding="same"), (2, 2, 3)),
    "dilation": (nn.Conv2d(2, 3, 2, dilation=(2, 1)), (4, 3)),
    "groups": (nn.Conv2d(4, 6, 2, groups=2), (3, 3)),
    "depthwise": (nn.Conv2d(3, 6, 2, groups=3), (3, 3)),
    "no bias": (nn.Conv2d(2, 3, 2, bias=False), (3, 3)),
    "pointwise": (nn.Conv2d(3, 4, 1), (3, 3)),
    "reflect": (nn.Conv2d(2, 2, 3, padding=(2, 1), padding_mode="reflect"), (4, 3)),
    "replicate": (nn.Conv2d(2, 2, 3, padding=1, padding_mode="replicate"), (3, 3)),
    "circular": (nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular"), (3, 3)),
    "circular, 1d": (nn.Conv1d(2, 3, 3, padding=2, padding_mode="circular", stride=2), (6,)),
    "reflect, 1d": (nn.Conv1d(2, 3, 3, padding=2, padding_mode="reflect"), (4,)),
    "reflect, 3d": (nn.Conv3d(1, 2, 2, padding=1, padding_mode="reflect"), (2, 2, 2)),
    "replicate, same": (nn.Conv2d(2, 2, (3, 2), padding="same", padding_mode="replicate"), (3, 3)),
    "circular, same, dilated": (nn.Conv2d(2, 2, 3, padding="same", padding_mode="circular", dilation=2), (4, 4)),
    "reflect, valid": (nn.Conv2d(2, 2, 2, padding="valid", padding_mode="reflect"), (3, 3)),
    "all at once": (nn.Conv2d(4, 4, (3, 2), (2, 1), (1, 2), (1, 2), 2, padding_mode="circular"), (4, 4)),
    "3d": (nn.Conv3d(2, 4, (1, 2, 3), (1, 2, 1), (0, 1, 1), (1, 1, 2), 2), (2, 3, 4)),
    "transposed": (nn.ConvTranspose2d(2, 3, 2), (2, 3)),
    "transposed, stride": (nn.ConvTranspose2d(2, 3, 3, stride=(2, 1), padding=(1, 0)), (3, 2)),
    "transposed, output_padding": (nn.ConvTranspose2d(2, 3, 3, 2, 1, (1, 0)), (2, 3)),
    "transposed, groups": (nn.ConvTranspose2d(4, 6, 2, groups=2), (2, 2)),
    "transposed, depthwise": (nn.ConvTranspose2d(3, 6, 2, groups=3), (2, 2)),
    "transposed, dilation": (nn.ConvTranspose2d(2, 3, 2, dilation=(2, 1)), (2, 2)),
    "transposed, no bias": (nn.ConvTranspose2d(2, 3, 2, bias=False), (2, 2)),
    "transposed, all at once": (nn.ConvTranspose2d(4, 2, (3, 2), (3, 2), (1, 0), (2, 1), 2, True, (2, 1)), (2, 2)),
    "transposed, 1d": (nn.ConvTranspose1d(2, 4, 4, 3, 1, 2, 2, True, 2), (4,)),
    "transposed, 3d": (nn.ConvTranspose3d(2, 2, (1, 2, 2), (1, 2, 1), (0, 1, 0), (0, 1, 0), 2), (2, 2, 2)),
}


def _channels(plain: Any) -> int:
    return int(plain.in_channels)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("option", CONVOLUTIONS)
def test_moments_of_every_option(method: Method, option: str) -> None:
    plain, shape = CONVOLUTIONS[option]
    plain.double()
    inputs = torch.randn(2, _channels(plain), *shape, dtype=torch.float64)
    layer = variational(plain, method)
    with quiet(layer):
        assert torch.equal(layer(inputs), plain(inputs))
        assert torch.equal(layer(inputs[0]), plain(inputs[0]))
    assert_moments(plain, layer, [inputs], count=2000)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("plain", "shape", "output_size"),
    [
        (nn.ConvTranspose1d(2, 3, 3, stride=3), (2, 2, 3), [11]),
        (nn.ConvTranspose2d(2, 3, 3, stride=2, padding=1), (2, 2, 2, 3), [4, 5]),
        (nn.ConvTranspose2d(2, 3, 3, stride=2, padding=1), (2, 2, 2, 3), [2, 3, 4, 6]),
        (nn.ConvTranspose3d(1, 2, 2, stride=2), (2, 1, 1, 2, 1), [3, 4, 3]),
    ],
)
def test_moments_with_output_size(method: Method, plain: nn.Module, shape: Shape, output_size: list[int]) -> None:
    plain.double()
    inputs, layer = torch.randn(shape, dtype=torch.float64), variational(plain, method)
    with quiet(layer):
        assert torch.equal(layer(inputs, output_size=output_size), plain(inputs, output_size=output_size))
    assert_moments(plain, layer, [inputs], count=2000, output_size=output_size)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("cls", [nn.Conv2d, nn.ConvTranspose2d])
def test_moments_in_low_precision(method: Method, dtype: torch.dtype, cls: Any) -> None:
    plain = cls(3, 2, 2, dtype=dtype)
    assert_moments(plain, variational(plain, method), [torch.randn(2, 3, 3, 3, dtype=dtype)])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("cls", [nn.Conv2d, nn.ConvTranspose2d])
def test_channels_last_stays(method: Method, cls: Any) -> None:
    plain = cls(4, 8, 3).to(memory_format=torch.channels_last)
    layer = variational(plain, method)
    inputs = torch.randn(2, 4, 6, 6).to(memory_format=torch.channels_last).requires_grad_()
    outputs = []
    for converted in (layer, layer.to(memory_format=torch.contiguous_format)):
        torch.manual_seed(3)
        outputs.append(converted(inputs))
        if converted is layer and not outputs[1:]:
            assert outputs[0].is_contiguous(memory_format=torch.channels_last)
            assert plain(inputs).is_contiguous(memory_format=torch.channels_last)
    outputs[0].square().sum().backward()
    assert inputs.grad is not None
    exact = covariance(plain, layer, inputs.detach()).diagonal()
    noise = torch.stack([(layer(inputs) - plain(inputs)).detach().double().flatten() for _ in range(400)])
    judge("variance", noise.square().mean(0) / exact - 1, torch.full_like(exact, (2 / 400) ** 0.5) * 1.3)


def test_flipout_keeps_the_variance_of_a_global_average_pool() -> None:
    """Signs drawn per pixel would leave a hundredth of it: they average each other away."""
    plain, inputs = nn.Conv2d(3, 4, 3, padding=1).double(), torch.randn(1, 3, 16, 16, dtype=torch.float64) + 0.3
    layer = variational(plain, "flipout")
    exact = _pooled(covariance(plain, layer, inputs))
    pooled = draws(layer, 40_000, inputs).mean((3, 4)).squeeze(1) - plain(inputs).mean((2, 3)).squeeze(0).detach()
    ratio = pooled.square() / exact
    judge_mean("pooled variance", ratio, 1.0)
    assert abs(ratio.mean() - 1) < 0.02


def test_signs_per_position_lose_it() -> None:
    plain, inputs = nn.Conv2d(3, 4, 3, padding=1).double(), torch.rand(1, 3, 16, 16, dtype=torch.float64)
    layer = variational(plain, "flipout", noisy(signs="position"))
    exact = covariance(plain, layer, inputs)
    noise = draws(layer, 2000, inputs) - plain(inputs).detach()
    judge_mean("variance", (noise.flatten(1).square() / exact.diagonal()).mean(1), 1.0)
    assert (noise.mean((3, 4)).squeeze(1).square() / _pooled(exact)).mean() < 0.05


def _pooled(covariance: Tensor) -> Tensor:
    return covariance.view(4, 256, 4, 256).mean((1, 3)).diagonal()


@pytest.mark.parametrize("method", METHODS)
def test_same_padding_with_a_stride_is_refused_as_torch_does(method: Method) -> None:
    with pytest.raises(ValueError, match="padding='same' is not supported for strided convolutions"):
        variational_nn.FlipoutConv2d(2, 3, 3, stride=2, padding="same")
