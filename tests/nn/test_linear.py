"""Linear and Bilinear."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from bayesify.nn.settings import Method
from tests.contract import LayerContract
from tests.support import (
    METHODS,
    assert_moments,
    covariance,
    draws,
    judge_mean,
    judge_moments,
    noisy,
    quiet,
    same_example,
    variational,
)


class TestLinear(LayerContract):
    def plain(self) -> nn.Module:
        return nn.Linear(5, 4)

    def inputs(self, examples: int) -> tuple[Tensor, ...]:
        return (torch.randn(examples, 5),)


class TestBilinear(LayerContract):
    def plain(self) -> nn.Module:
        return nn.Bilinear(3, 4, 5)

    def inputs(self, examples: int) -> tuple[Tensor, ...]:
        return torch.randn(examples, 3), torch.randn(examples, 4)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bias", ["none", "deterministic", "variational"])
@pytest.mark.parametrize("leading", [(), (2,), (2, 3), (2, 3, 2), (2, 1, 2, 3)])
@pytest.mark.parametrize("kind", ["linear", "bilinear"])
def test_moments_on_any_number_of_leading_dimensions(
    method: Method, bias: str, leading: tuple[int, ...], kind: str
) -> None:
    plain = nn.Linear(5, 3, bias=bias != "none") if kind == "linear" else nn.Bilinear(3, 4, 3, bias=bias != "none")
    sizes = (5,) if kind == "linear" else (3, 4)
    inputs = [torch.randn(*leading, size, dtype=torch.float64) for size in sizes]
    layer = variational(plain.double(), method, noisy(bias="variational" if bias == "variational" else "deterministic"))
    with quiet(layer):
        assert torch.equal(layer(*inputs), plain(*inputs))
    assert_moments(plain, layer, inputs, batched=bool(leading), count=2000)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_moments_in_low_precision(method: Method, dtype: torch.dtype) -> None:
    plain = nn.Linear(8, 3, dtype=dtype)
    assert_moments(plain, variational(plain, method), [torch.randn(2, 8, dtype=dtype)])


def test_flipout_over_a_mean_of_tokens() -> None:
    """All tokens of an example share one weight draw: averaging 32 of them does not average its noise away."""
    plain, tokens = nn.Linear(6, 4).double(), torch.randn(1, 32, 6, dtype=torch.float64) + 0.5
    layer = variational(plain, "flipout")
    pool = torch.eye(4, dtype=torch.float64).repeat(1, 32) / 32
    exact = (pool @ covariance(plain, layer, tokens) @ pool.T).diagonal()
    pooled = draws(layer, 30_000, tokens).mean(2).squeeze(1) - plain(tokens).mean((0, 1)).detach()
    judge_mean("pooled variance", pooled.square() / exact, 1.0)
    assert (pooled.square().mean(0) / exact - 1).abs().mean() < 0.02


def test_flipout_signs_follow_the_batch_where_that_is_not_the_leading_dimension() -> None:
    """A sequence-first input (tokens, batch, features): one weight draw per element of the batch."""
    plain, inputs = nn.Linear(5, 3).double(), torch.randn(4, 2, 5, dtype=torch.float64)
    layer = variational(plain, "flipout", noisy(batch_dim=1))
    swapped = draws(layer, 4000, inputs).transpose(1, 2)
    mean = plain(inputs).transpose(0, 1).detach()
    exact = covariance(plain, layer, inputs.transpose(0, 1)) * same_example(mean)
    judge_moments(swapped, mean, exact)


def test_flipout_signs_per_position_keep_marginals_only() -> None:
    plain, inputs = nn.Linear(5, 3).double(), torch.randn(1, 4, 5, dtype=torch.float64)
    layer = variational(plain, "flipout", noisy(signs="position"))
    noise = draws(layer, 8000, inputs) - plain(inputs).detach()
    exact = covariance(plain, layer, inputs).diagonal().view(1, 4, 3)
    judge_mean("variance", noise.square() / exact, 1.0)
    judge_mean("covariance of two tokens", noise[:, 0, 0] * noise[:, 0, 1], 0.0)


@pytest.mark.parametrize("sizes", [(1, 32), (32, 1)])
def test_bilinear_flipout_has_signs_on_both_inputs(sizes: tuple[int, int]) -> None:
    """With none on the wider one, equal examples would get the same noise but for its sign."""
    layer = variational(nn.Bilinear(*sizes, 1, bias=False).double(), "flipout")
    left, right = (torch.ones(500, size, dtype=torch.float64) for size in sizes)
    noise = layer(left, right).detach() - layer.weight.sum().detach()
    assert (noise.abs() * 1e9).round().unique().numel() > 450


@pytest.mark.parametrize("method", METHODS)
def test_an_empty_batch(method: Method) -> None:
    layer = variational(nn.Linear(5, 3), method)
    assert layer(torch.empty(0, 5)).shape == (0, 3)
    layer(torch.empty(0, 5)).sum().backward()
