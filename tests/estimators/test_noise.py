"""Random bits as signs, and noise that follows torch's own generators."""

from __future__ import annotations

import math

import pytest
import torch

from bayesify.estimators import noise
from tests.support import as_if_compiling, judge, judge_mean


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(), (1,), (63,), (64,), (65, 3), (2, 1, 5, 1)])
def test_signs_are_plus_or_minus_one(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    bits = noise.sign_bits(shape, torch.empty(()))
    signs = noise.signs(bits, shape, dtype)
    assert signs.shape == shape
    assert signs.dtype == dtype
    assert (signs.abs() == 1).all()
    assert bits.numel() <= math.prod(shape) // 8 + 16  # a bit for each, in whole words


def test_no_signs_of_nothing() -> None:
    assert noise.signs(noise.sign_bits((0, 3), torch.empty(())), (0, 3), torch.float32).shape == (0, 3)


def test_signs_are_fair_and_independent() -> None:
    """Every bit of a word, in every position, and every pair of them."""
    count, size = 20_000, 128  # two words, so that a column is one bit of a word
    bits = noise.sign_bits((count, size), torch.empty(()))
    signs = noise.signs(bits, (count, size), torch.float64)
    off = ~torch.eye(size, dtype=torch.bool)
    judge("mean", signs.mean(0), torch.full((size,), count**-0.5))
    judge("correlation", (signs.T @ signs / count)[off], torch.tensor(count**-0.5))


def test_normal_numbers() -> None:
    numbers = noise.normal_like(torch.empty(200_000, dtype=torch.float64))
    for power, expected in ((1, 0.0), (2, 1.0), (3, 0.0), (4, 3.0)):
        judge_mean(f"moment {power}", numbers**power, expected)


@pytest.mark.parametrize("draw", [noise.normal_like, lambda like: noise.sign_bits((9, 9), like)])
def test_the_default_generator_decides(draw: object) -> None:
    assert callable(draw)
    torch.manual_seed(3)
    first, second = draw(torch.empty(50)), draw(torch.empty(50))
    assert not torch.equal(first, second)
    torch.manual_seed(3)
    with as_if_compiling():  # the compiler's operators draw the very same numbers
        assert torch.equal(draw(torch.empty(50)), first)
    assert torch.equal(draw(torch.empty(50)), second)
