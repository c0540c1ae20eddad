"""The draw of a weight that a forward computes with is there by whatever way the code comes to the weight."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bayesify


class Twice(torch.autograd.Function):
    """A function of the user's."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> Tensor:
        return 2 * weight

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 2 * grad


WAYS: dict[str, Callable[[nn.Module], Tensor]] = {
    "attribute": lambda module: 2 * module.weight,
    "dict of Parameters": lambda module: 2 * module._parameters["weight"],
    "parameters()": lambda module: 2 * next(module.parameters()),
    "a view as an attribute": lambda module: (2 * module.weight.T).T,
    "a function of the user's": lambda module: Twice.apply(module.weight),
}


class Ways(nn.Module):
    """Comes to its weight in a way that may be set afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.way = nn.Parameter(torch.randn(3, 4)), "attribute"

    def forward(self, x: Tensor) -> tuple[Tensor, Any]:
        return F.linear(x, WAYS[self.way](self).exp()), self.state_dict()["weight"]


@pytest.mark.parametrize("way", WAYS)
def test_a_draw_is_there_by_whatever_way_the_code_comes_to_the_weight(way: str) -> None:
    layer, x = bayesify.convert(Ways()), torch.randn(2, 4)
    assert layer._settings.drawn == ("weight",)
    layer.way = way
    torch.manual_seed(3)
    output, saved = layer(x)
    torch.manual_seed(3)
    draw = layer._sampled("weight")
    assert torch.equal(output, F.linear(x, (2 * draw).exp()))
    assert torch.equal(saved, layer.weight)  # a state_dict beside a forward has the mean
    layer.zero_grad()
    output.sum().backward()
    assert layer.scale_of("weight").grad.abs().sum() > 0
