"""A conversion that fails, or is refused, leaves the model as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import bayesify
from bayesify.errors import (
    AlreadyVariationalError,
    NotCopyableError,
)
from bayesify.nn.registry import _VARIANTS
from bayesify.surgery import rewrite as surgery
from tests.nets import SmallResNet, Tangled, snapshot
from tests.surgery.models import METHODS, VARIATIONAL_BIAS, encoder

FAILING = {
    "made": (surgery, "posterior_tensors"),
    "added": (bayesify.nn.Variational, "add_posterior"),
    "switched": (surgery, "_adjust"),
    "kl": (surgery.Ledger, "__init__"),
}


@pytest.mark.parametrize(
    ("where", "at"), [(where, at) for where in FAILING for at in (0, 1, 2) if where != "kl" or not at]
)
def test_a_failure_leaves_the_model_as_it_was(monkeypatch: pytest.MonkeyPatch, where: str, at: int) -> None:
    model = nn.Sequential(encoder(), Tangled(), nn.Conv1d(2, 2, 1))
    original, calls = getattr(*FAILING[where]), []

    def failing(*args: Any) -> Any:
        if len(calls) == at:
            raise MemoryError("injected")
        calls.append(args)
        return original(*args)

    monkeypatch.setattr(*FAILING[where], failing)
    before = snapshot(model)
    with pytest.raises(MemoryError, match="injected"):
        bayesify.convert(model, VARIATIONAL_BIAS, inplace=True)
    assert snapshot(model) == before


class Guarded(nn.Linear):
    """Refuses attributes that it does not know."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "_reached":
            raise AttributeError("guarded")
        super().__setattr__(name, value)


def test_a_layer_that_refuses_half_way_is_put_back_with_all_others() -> None:
    bayesify.register(Guarded)
    try:
        model = nn.Sequential(nn.Linear(2, 2), Guarded(2, 2), nn.Linear(2, 2))
        before = snapshot(model)
        with pytest.raises(AttributeError, match="guarded"):
            bayesify.convert(model, inplace=True)
        assert snapshot(model) == before
    finally:
        del _VARIANTS[Guarded]


def test_converting_twice() -> None:
    model = bayesify.convert(SmallResNet())
    before = snapshot(model)
    for method in METHODS:
        with pytest.raises(AlreadyVariationalError, match="conv1"):
            bayesify.convert(model, method, inplace=True)
    assert snapshot(model) == before


def test_what_torch_cannot_copy_converts_in_place() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model.held = torch.ones(2, requires_grad=True) * 2  # type: ignore[assignment]
    with pytest.raises(NotCopyableError, match="inplace=True"):
        bayesify.convert(model)
    bayesify.convert(model, inplace=True)
    assert isinstance(model[1], bayesify.nn.FlipoutLinear)
