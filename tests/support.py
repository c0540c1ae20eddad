"""What the tests of layers share: converting one layer, drawing from it, and judging draws by z-scores.

The reference for moments is the plain layer in float64: the covariance of an output is J diag(std²) Jᵀ, with J its
Jacobian in the weight by autograd, so that no formula is shared with the code under test.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from statistics import NormalDist
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from bayesify.distributions.posterior import Parameterization, Posterior, Scale
from bayesify.estimators import noise
from bayesify.nn import Settings
from bayesify.nn.base import Variational
from bayesify.nn.posterior_tensors import posterior_tensors
from bayesify.nn.registry import variant
from bayesify.nn.settings import Method
from bayesify.nn.switches import MEAN, switched

METHODS: tuple[Method, ...] = ("flipout", "lrt")
PARAMETERIZATIONS: tuple[Parameterization, ...] = ("additive", "multiplicative")
FALSE_ALARM = 1e-6  # per test, over all that it compares


def noisy(parameterization: Parameterization = "additive", bias: Any = "variational", **others: Any) -> Settings:
    """Settings with a std large enough to be measured."""
    return Settings(posterior=Posterior(parameterization, Scale("relative", 0.5, floor=0.5)), bias=bias, **others)


def variational(plain: nn.Module, method: Method, settings: Settings | None = None, uneven: bool = True) -> Any:
    """A converted copy of one plain layer; `uneven` gives each element a std of its own, so that mix-ups show."""
    layer: Any = copy.deepcopy(plain)
    settled = (settings or noisy()).for_depth(1)
    tensors = posterior_tensors(layer, settled)
    cls = variant(type(plain), method)
    assert cls is not None
    layer.__class__ = cls
    layer.add_posterior(settled, tensors)
    if uneven:
        for name in layer.means():
            layer.scale_of(name).data += 0.5 * torch.randn_like(layer.scale_of(name))
    return layer


@contextmanager
def quiet(layer: Variational) -> Iterator[None]:
    """No noise inside."""
    with switched({layer: MEAN}):
        yield


def as_if_compiling() -> Any:
    """Choose the formulas that the compiler sees, in eager mode."""
    return mock.patch("torch.compiler.is_compiling", return_value=True)


@contextmanager
def fixed_noise() -> Iterator[None]:
    """The same uneven numbers and signs at every draw, in whatever order the draws are made."""

    def normal_like(tensor: Tensor) -> Tensor:
        return torch.sin(torch.arange(1, tensor.numel() + 1, dtype=tensor.dtype)).view(tensor.shape)

    def sign_bits(shape: Sequence[int], like: Tensor) -> Tensor:
        words = (math.prod(shape) + 63) // 64
        return (torch.arange(words * 8) * 73 % 256).to(torch.uint8).view(words, 8)

    def few_signs(like: Tensor) -> Tensor:
        return noise.signs(sign_bits(like.shape, like), like.shape, like.dtype)

    drawn = {"normal_like": normal_like, "eager_normal_like": normal_like, "sign_bits": sign_bits}
    with mock.patch.multiple(noise, few_signs=few_signs, **drawn):
        yield


def draws(layer: nn.Module, count: int, *inputs: Tensor, **kwargs: Any) -> Tensor:
    """Independent outputs of the layer, (count, *output), in float64."""
    with torch.no_grad():
        return vmap(lambda _: layer(*inputs, **kwargs), randomness="different")(torch.empty(count)).double()


def jacobian(plain: nn.Module, name: str, *inputs: Tensor, **kwargs: Any) -> Tensor:
    """d output / d parameter of the plain layer in float64, flattened to (outputs, weights)."""
    wide = copy.deepcopy(plain).double()
    value = getattr(wide, name).detach()

    def output(given: Tensor) -> Tensor:
        return functional_call(wide, {name: given}, tuple(x.double() for x in inputs), kwargs).flatten()

    return torch.autograd.functional.jacobian(output, value, vectorize=True).flatten(1)  # type: ignore[no-untyped-call]


def covariance(plain: nn.Module, layer: Any, *inputs: Tensor, **kwargs: Any) -> Tensor:
    """The exact covariance of all outputs, flattened, if one draw of the weights served the whole batch."""
    total = torch.zeros(())
    for name in layer.means():
        scaled = jacobian(plain, name, *inputs, **kwargs) * layer.std_of(name).detach().double().flatten()
        total = total + scaled @ scaled.T
    return total


def same_example(output: Tensor, batched: bool = True) -> Tensor:
    """Which pairs of flattened outputs belong to one example of the batch."""
    examples = output.shape[0] if batched else 1
    of = torch.arange(output.numel()) * examples // output.numel()
    return of[:, None] == of[None, :]


def bound(comparisons: int) -> float:
    """The |z| that `comparisons` standard normal numbers stay under, but for FALSE_ALARM; 15% more for skewed sums."""
    return -1.15 * NormalDist().inv_cdf(FALSE_ALARM / 2 / comparisons)


def judge(name: str, error: Tensor, standard_error: Tensor) -> None:
    """Assert that the errors are what their standard errors allow."""
    z = (error / standard_error.clamp_min(1e-12)).abs().max().item()
    limit = bound(error.numel())
    assert z < limit, f"{name}: |z| = {z:.1f} > {limit:.1f} over {error.numel()} comparisons"


def judge_mean(name: str, samples: Tensor, expected: Tensor | float) -> None:
    """Assert that the mean over dimension 0 is as expected, judged by the samples' own spread."""
    judge(name, samples.mean(0) - expected, samples.std(0) / math.sqrt(len(samples)))


def judge_moments(samples: Tensor, mean: Tensor, expected: Tensor) -> None:
    """Assert the mean, every entry of the covariance, and the mean variance over all outputs, of (draws, *output)."""
    noise = samples.flatten(1) - mean.double().flatten()
    count, variance = len(noise), expected.diagonal()
    judge("mean", noise.mean(0), (variance / count).sqrt())
    products = noise.T @ noise / count
    by_theory = variance[:, None] * variance + expected.square()
    by_sample = noise.square().T @ noise.square() / count - products.square()
    judge("covariance", products - expected, (by_theory.maximum(by_sample) / count).sqrt())
    moving = variance > 1e-20
    judge_mean("mean variance", (noise[:, moving].square() / variance[moving]).mean(1), 1.0)


def expected_covariance(
    plain: nn.Module, layer: Any, inputs: Sequence[Tensor], batched: bool = True, **kwargs: Any
) -> Tensor:
    """What the method promises: Flipout the exact covariance within each example, LRT the exact variances."""
    exact = covariance(plain, layer, *inputs, **kwargs)
    if layer.method == "lrt":
        return exact.diagonal().diag()
    return exact * same_example(plain(*inputs, **kwargs), batched)


def assert_moments(
    plain: nn.Module, layer: Any, inputs: Sequence[Tensor], batched: bool = True, count: int = 4000, **kwargs: Any
) -> None:
    """Assert that the layer's outputs have the mean and the covariance that its method promises."""
    wide = copy.deepcopy(plain).double()
    mean = wide(*(x.double() for x in inputs), **kwargs).detach()
    judge_moments(
        draws(layer, count, *inputs, **kwargs), mean, expected_covariance(plain, layer, inputs, batched, **kwargs)
    )
