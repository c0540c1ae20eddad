"""What a plan costs grows as its layers do: no layer looks at all the others."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bayesify


class _Loop(nn.Module):
    """A forward over a list of layers."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(2, 2) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.relu(layer(x))
        return x


class _Untraced(_Loop):
    """The same, with a branch on values."""

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        return x if x.sum() > 0 else -x


def _sequential(layers: int) -> nn.Module:
    return nn.Sequential(*(nn.Linear(2, 2) for _ in range(layers)))


@pytest.mark.parametrize("made", [_sequential, _Loop, _Untraced], ids=["sequential", "loop", "untraced"])
def test_the_calls_of_a_plan_grow_as_its_layers_do(made: Any) -> None:
    bayesify.plan(made(2), "flipout")  # what is done once
    few, many = (_calls_of_plan(made(layers)) for layers in (100, 400))
    assert many < 4.05 * few


def _calls_of_plan(model: nn.Module) -> int:
    calls, before = 0, sys.getprofile()

    def count(frame: Any, event: str, arg: Any) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        bayesify.plan(model, "flipout")
    finally:
        sys.setprofile(before)
    return calls
