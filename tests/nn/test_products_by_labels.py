"""Products that torch reads with any number of dimensions, as an estimator reads them: by labels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bayesify
from bayesify.nn.settings import Method
from tests.support import METHODS, draws, judge_mean


class Net(nn.Module):
    """A weight, and a product with it."""

    def __init__(self, shape: tuple[int, ...], act: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.matrix, self.act = nn.Parameter(torch.randn(shape)), act

    def forward(self, x: Tensor) -> Any:
        return self.act(x, self.matrix)


# (the weight's shape, the product, the input's shape)
FORMS: dict[str, tuple[tuple[int, ...], Callable[[Any, Any], Any], tuple[int, ...]]] = {
    "one row": ((3, 4), lambda x, w: x @ w, (3,)),
    "a matrix by a vector": ((3, 4), lambda x, w: w @ x, (4,)),
    "a column": ((3, 4), lambda x, w: x @ w[:, 0], (2, 3)),
    "one of many": ((2, 3, 4), lambda x, w: x @ w[1], (2, 3)),
    "a weight for all": ((1, 3, 4), lambda x, w: x @ w, (2, 2, 3)),
    "an input for all": ((5, 3, 4), lambda x, w: x[:, None] @ w, (2, 1, 3)),
    "capsules": ((1, 5, 4, 3), lambda x, w: (w @ x[..., None]).squeeze(-1), (2, 5, 3)),
    "ellipsis": ((3, 4), lambda x, w: torch.einsum("...i,ij->...j", x, w), (2, 2, 3)),
    "ellipsis behind": ((3, 4), lambda x, w: torch.einsum("ij,bi...->b...j", w, x), (2, 3, 2)),
    "no arrow": ((3, 4), lambda x, w: torch.einsum("bi,ij", x, w), (2, 3)),
    "a size of one": ((1, 4), lambda x, w: torch.einsum("bi,ij->bj", x, w), (2, 1)),
}


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("method", METHODS)
def test_the_product_and_the_variance_of_each_output(method: Method, name: str) -> None:
    shape, act, given = FORMS[name]
    plain, x = Net(shape, act).double(), torch.rand(given).double() + 0.5
    model: Any = bayesify.convert(plain, method)
    assert model._settings.drawn == ()
    with bayesify.posterior_mean(model):
        assert torch.equal(model(x), plain(x))
    spread = draws(model, 4000, x) - plain(x).detach()
    variance = act(x.square(), model.std_of("matrix").detach().square())
    judge_mean("variance", spread.square() / variance, 1.0)
    x.requires_grad_()
    model(x).square().sum().backward()
    scale: Any = model.scale_of("matrix")
    assert scale.grad.abs().sum() > 0
    assert x.grad is not None
    assert x.grad.shape == x.shape
