"""A layer that no forward reaches, while its KL is trained, is told: however the model is called."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import bayesify
from tests.support import METHODS

from .hidden_reads import ByName, Data, FunctionGetsLayer

X = torch.ones(3, 4)
WAYS: dict[str, Callable[[Any], Any]] = {
    "forward": lambda model: model.forward,
    "method": lambda model: model.multiplied,
    "compiled": lambda model: torch.compile(model, backend="eager"),
}


def train(model: Any, call: Callable[[Any], Any], steps: int = 20, **kl: Any) -> None:
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        (call(X).square().mean() + model.kl(**kl) / 100).backward()
        optimizer.step()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("kind", [FunctionGetsLayer, ByName, Data])
def test_a_weight_that_is_only_read_is_told(kind: Any, way: Callable[[Any], Any], method: str) -> None:
    model = bayesify.convert(kind(), method)
    named = "'a' and 1 more layers" if kind is FunctionGetsLayer else "'a'"
    with pytest.warns(UserWarning, match=f"{named} had no part in any forward"):
        train(model, way(model))


def test_another_model_that_is_trained_is_told() -> None:
    """The optimizer has the converted model, and the loop calls the one that it was copied from."""
    plain = nn.Linear(4, 4)
    model = bayesify.convert(plain)
    with pytest.warns(UserWarning, match="'the layer' had no part in any forward"):
        train(model, plain)


def test_layers_that_take_turns_or_are_not_trained_say_nothing() -> None:
    model: Any = bayesify.convert(nn.ModuleList(nn.Linear(4, 4) for _ in range(8)))
    turns = iter(range(20))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(model, lambda x: model[next(turns) % 8](x))
        model.kl.reset()
        train(model, model[0], reached=True)
        frozen: Any = bayesify.convert(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)))
        frozen[1].requires_grad_(False)
        train(frozen, frozen[0])
        idle = bayesify.convert(nn.Linear(4, 4))
        assert all(idle.kl() > 0 for _ in range(20))
