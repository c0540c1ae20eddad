"""Low-rank adapters in the old style, which merge themselves in eval mode: they stay, and what is around converts."""

from __future__ import annotations

from typing import Any, Self

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bayesify
from tests.support import METHODS


class MergingLinear(nn.Linear):
    """A low-rank adapter in the old style: in eval mode it is added to the weight, and not called."""

    def __init__(self, inputs: int, outputs: int, rank: int = 2) -> None:
        super().__init__(inputs, outputs)
        self.a, self.b = nn.Parameter(torch.randn(rank, inputs)), nn.Parameter(torch.zeros(outputs, rank))
        self.merged = False

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if mode == self.merged:
            self.weight.data += (-1 if mode else 1) * (self.b @ self.a).data
            self.merged = not mode
        return self

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(x, self.weight, self.bias)
        return y if self.merged else y + (x @ self.a.t()) @ self.b.t()


class Adapted(nn.Module):
    """Merging adapters between layers that have none."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.adapted, self.head = nn.Linear(6, 8), MergingLinear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.gelu(self.adapted(self.embed(x))))  # type: ignore[no-any-return]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("training", [True, False])
def test_what_is_around_them_is_noisy_in_both_modes(method: str, training: bool) -> None:
    plain, x = Adapted().train(training), torch.randn(3, 6)
    nn.init.normal_(plain.adapted.b)
    rows = {row.name: row for row in bayesify.plan(plain, method).rows}
    assert {name: row.verb for name, row in rows.items()} == {
        "embed": "converts", "adapted": "blocked", "head": "converts",
    }  # fmt: skip
    assert "MergingLinear.train() computes with its weight" in str(rows["adapted"].reason)
    model: Any = bayesify.convert(plain, method)
    for mode in (training, not training, training):
        plain.train(mode), model.train(mode)
        with bayesify.posterior_mean(model):
            assert torch.equal(model(x), plain(x))
        assert not torch.equal(model(x), model(x))
