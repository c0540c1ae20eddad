"""x²·std² a piece of the weight at a time: as with all of std² at once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bayesify.estimators import few_rows
from bayesify.estimators.lrt import lrt
from bayesify.estimators.products import LinearProduct
from bayesify.estimators.std_forms import SoftplusStd, form_of
from tests.support import fixed_noise

PRODUCT = LinearProduct()


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)


@pytest.mark.parametrize("shape", [(1, 600), (5, 600), (2, 3, 600), (20, 600), (2, 8, 600)])
@pytest.mark.parametrize("level", [-6.0, 1.0])
def test_it_is_the_product_with_all_squares(
    shape: tuple[int, ...], level: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """500 rows of the weight in pieces of 218, and of 1."""
    torch.manual_seed(0)
    x, rho = torch.rand(shape), torch.randn(500, 600) + level
    reference = F.linear(x.double(), F.softplus(rho.double()).square())
    for piece in (2**17, 100):
        monkeypatch.setattr(few_rows, "PIECE", piece)
        torch.testing.assert_close(few_rows.product_with_squares(x, rho).double(), reference, rtol=3e-6, atol=0)


@pytest.mark.parametrize("draws", [1, 3])
@pytest.mark.parametrize("biased", [False, True])
def test_the_estimator_gives_the_same_with_it(draws: int, biased: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    x, mean, rho = torch.randn(4, 600), torch.randn(500, 600), torch.nn.Parameter(torch.randn(500, 600) - 5)
    bias = (torch.randn(500), torch.rand(500)) if biased else (None, None)
    served: list[bool] = []
    serves = few_rows.serves_few_rows

    def noting(*given: Any) -> bool:
        served.append(serves(*given))
        return served[-1]

    def output() -> Tensor:
        with torch.no_grad(), fixed_noise():
            return lrt(PRODUCT, [x], mean, SoftplusStd(rho), *bias, draws=draws)

    monkeypatch.setattr("bayesify.estimators.lrt.serves_few_rows", noting)
    found = output()
    monkeypatch.setattr("bayesify.estimators.lrt.serves_few_rows", lambda *given: False)
    torch.testing.assert_close(found, output())
    assert served == [True]


def test_what_it_is_not_for() -> None:
    rho, x = torch.randn(500, 600), torch.randn(4, 600)
    softplus, given = form_of(SoftplusStd(rho))[0], form_of(rho)[0]
    with torch.no_grad():
        assert few_rows.serves_few_rows(PRODUCT, softplus, rho, x)
        assert not few_rows.serves_few_rows(PRODUCT, given, rho, x)
        assert not few_rows.serves_few_rows(PRODUCT, softplus, rho.double(), x.double())
        assert not few_rows.serves_few_rows(PRODUCT, softplus, rho, x.bfloat16())
        assert not few_rows.serves_few_rows(PRODUCT, softplus, rho[:50], x)
        assert not few_rows.serves_few_rows(PRODUCT, softplus, rho, torch.randn(33, 600))
        mapped: list[bool] = []
        torch.vmap(lambda one: mapped.append(few_rows.serves_few_rows(PRODUCT, softplus, rho, one)) or one)(x[:, None])
        assert mapped == [False]
    assert not few_rows.serves_few_rows(PRODUCT, softplus, rho, x)
