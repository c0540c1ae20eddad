"""Random bits as signs, and noise that follows torch's own generators."""

from __future__ import annotations

import math

import pytest
import torch
from torch._subclasses import FakeTensorMode

from bayesify.estimators import noise
from tests.support import as_if_compiling, judge, judge_mean


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(), (1,), (64,), (65, 3), (65, 63), (2, 1, 5, 1), (2, 1, 5000, 1)])
def test_signs_are_plus_or_minus_one(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    bits = noise.sign_bits(shape, torch.empty(()))
    signs = noise.signs(bits, shape, dtype)
    assert signs.shape == shape
    assert signs.dtype == dtype
    assert (signs.abs() == 1).all()
    count = math.prod(shape)
    assert bits.nbytes <= (4 * count if count <= noise.FEW else count // 8 + 16)  # bits in whole words


def test_no_signs_of_nothing() -> None:
    assert noise.signs(noise.sign_bits((0, 3), torch.empty(())), (0, 3), torch.float32).shape == (0, 3)


@pytest.mark.parametrize("count", [20_000, 16])
def test_signs_are_fair_and_independent(count: int) -> None:
    """Every bit of a word, in every position, and every pair of them; and where a few are drawn at a time."""
    size, times = 128, 20_000 // count  # two words, so that a column is one bit of a word
    signs = torch.cat([_drawn(count, size) for _ in range(times)])
    count *= times
    off = ~torch.eye(size, dtype=torch.bool)
    judge("mean", signs.mean(0), torch.full((size,), count**-0.5))
    judge("correlation", (signs.T @ signs / count)[off], torch.tensor(count**-0.5))


def _drawn(*shape: int) -> torch.Tensor:
    return noise.signs(noise.sign_bits(shape, torch.empty(())), shape, torch.float64)


@pytest.mark.parametrize("count", [16, 20_000])
def test_signs_of_tensors_without_numbers(count: int) -> None:
    assert noise.sign_bits((count,), torch.empty(3, device="meta")).is_meta
    with FakeTensorMode():
        like = torch.empty(3)
        assert noise.signs(noise.sign_bits((count,), like), (count,), like.dtype).shape == (count,)


def test_normal_numbers() -> None:
    numbers = noise.normal_like(torch.empty(200_000, dtype=torch.float64))
    for power, expected in ((1, 0.0), (2, 1.0), (3, 0.0), (4, 3.0)):
        judge_mean(f"moment {power}", numbers**power, expected)


@pytest.mark.parametrize("draw", [noise.normal_like, lambda like: noise.sign_bits((99, 99), like)])
def test_the_default_generator_decides(draw: object) -> None:
    assert callable(draw)
    torch.manual_seed(3)
    first, second = draw(torch.empty(50)), draw(torch.empty(50))
    assert not torch.equal(first, second)
    torch.manual_seed(3)
    with as_if_compiling():  # the compiler's operators draw the very same numbers
        assert torch.equal(draw(torch.empty(50)), first)
    assert torch.equal(draw(torch.empty(50)), second)
