"""The estimators as pure functions: named, shaped and called like torch.nn.functional's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bayesify import functional
from tests.support import METHODS, bound, judge_mean

DOUBLE = torch.float64


def _tensor(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=DOUBLE)


pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")  # by torch's own function

CASES: dict[str, tuple[list[Tensor], Tensor, Tensor, dict[str, Any]]] = {
    "linear": ([_tensor(2, 3, 4)], _tensor(5, 4), _tensor(5), {}),
    "bilinear": ([_tensor(2, 3), _tensor(2, 4)], _tensor(5, 3, 4), _tensor(5), {}),
    "conv1d": ([_tensor(2, 4, 9)], _tensor(6, 2, 3), _tensor(6), {"stride": 2, "padding": (1,), "groups": 2}),
    "conv2d": ([_tensor(2, 2, 5, 4)], _tensor(3, 2, 2, 3), _tensor(3), {"padding": "same", "dilation": [1, 2]}),
    "conv3d": ([_tensor(2, 2, 3, 4, 3)], _tensor(2, 2, 1, 2, 2), _tensor(2), {"padding": "valid", "stride": (1, 2, 1)}),
    "conv_transpose1d": (
        [_tensor(2, 4, 4)], _tensor(4, 3, 3), _tensor(6), {"stride": 2, "output_padding": 1, "groups": 2},
    ),
    "conv_transpose2d": ([_tensor(2, 2, 3, 3)], _tensor(2, 3, 2, 2), _tensor(3), {"padding": 1, "dilation": (2, 1)}),
    "conv_transpose3d": ([_tensor(2, 2, 2, 2, 2)], _tensor(2, 2, 2, 1, 2), _tensor(2), {"stride": [1, 2, 1]}),
}
each_case = pytest.mark.parametrize("name", CASES)
each_method = pytest.mark.parametrize("method", METHODS)


@each_case
@each_method
def test_without_std_it_is_torchs_function(name: str, method: str) -> None:
    inputs, weight, bias, options = CASES[name]
    function = getattr(functional, f"{method}_{name}")
    expected = getattr(F, name)(*inputs, weight, bias, **options)
    torch.testing.assert_close(function(*inputs, weight, torch.zeros_like(weight), bias, **options), expected)
    no_bias = getattr(F, name)(*inputs, weight, None, **options)
    torch.testing.assert_close(function(*inputs, weight, torch.zeros_like(weight), **options), no_bias)


@each_case
@each_method
def test_variance_of_the_pure_functions(name: str, method: str) -> None:
    """The variance of each output is the plain function of squares where the product is linear: weights and bias."""
    inputs, weight, bias, options = CASES[name]
    std, bias_std = torch.rand_like(weight) + 0.1, torch.rand_like(bias) + 0.1
    function = getattr(functional, f"{method}_{name}")
    draw = torch.func.vmap(
        lambda _: function(*inputs, weight, std, bias, bias_std=bias_std, **options), randomness="different"
    )
    noise = draw(torch.empty(4000)) - getattr(F, name)(*inputs, weight, bias, **options)
    exact = getattr(F, name)(*(x.square() for x in inputs), std.square(), bias_std.square(), **options)
    judge_mean("mean", noise, 0.0)
    judge_mean("variance", noise.square() / exact, 1.0)


@each_case
@each_method
def test_pure_functions_name_themselves(name: str, method: str) -> None:
    function = getattr(functional, f"{method}_{name}")
    assert function.__name__ == f"{method}_{name}"
    assert f"`F.{name}`" in function.__doc__


def test_position_signs_and_batch_dim_reach_the_estimator() -> None:
    x, mean, std = torch.ones(1, 3, 1, dtype=DOUBLE), torch.zeros(1, 1, dtype=DOUBLE), torch.ones(1, 1, dtype=DOUBLE)
    for options, shared in (({}, True), ({"batch_dim": 1}, False), ({"signs": "position"}, False)):
        tokens = torch.stack([functional.flipout_linear(x, mean, std, **options).flatten() for _ in range(60)])
        assert torch.equal(tokens[:, :1].expand(-1, 3), tokens) is shared
        assert torch.equal(tokens[:, :1].abs().expand(-1, 3), tokens.abs())


@each_method
def test_what_torch_refuses_is_refused(method: str) -> None:
    conv = getattr(functional, f"{method}_conv2d")
    x, weight = _tensor(1, 2, 5, 5), _tensor(3, 2, 3, 3)
    with pytest.raises(ValueError, match="padding='same' is not supported for strided"):
        conv(x, weight, weight, padding="same", stride=2)
    with pytest.raises(ValueError, match="padding='full' is neither a number nor 'same' nor 'valid'"):
        conv(x, weight, weight, padding="full")


def test_the_bound_grows_with_the_comparisons() -> None:
    """A guard on the tests' own judge."""
    assert 5 < bound(1) < bound(10_000) < 9
