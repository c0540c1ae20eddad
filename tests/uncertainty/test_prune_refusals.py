"""What `prune` leaves and names, what it refuses, and that it is whole or not at all."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.nn.utils import prune as torch_prune

import bayesify
from bayesify.errors import NotVariationalError, UsageError
from bayesify.uncertainty.fit_std import fit_std
from bayesify.uncertainty.prune import prune

from .test_prune import X, fitted, net


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.lstm = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4), nn.LSTM(4, 4)
        self.b.weight = self.a.weight
        self.own = nn.Parameter(torch.randn(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.c(self.b(self.a(x))), self.own)


def test_what_cannot_be_pruned_is_left_and_named() -> None:
    model = fitted(Tied())
    before = model.a.weight.detach().clone()
    report = prune(model, fraction=0.5)
    assert [row.name for row in report.rows] == ["c.weight", "lstm.weight_ih_l0", "lstm.weight_hh_l0"]
    assert {name for name, _ in report.skipped} == {"a.weight", "own"}
    assert torch.equal(model.a.weight, before)
    assert "a.weight is tied" in repr(report)
    assert [name for name, _ in prune(model, snr=1.0, by="channel").skipped][-1] == "lstm.weight_hh_l0"
    assert report.weights == 16 + 128


def test_a_decoder_tied_to_its_embedding_is_left() -> None:
    plain = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 4), nn.Linear(4, 7))
    plain[2].weight = plain[0].weight  # type: ignore[assignment]
    report = prune(fitted(plain), fraction=0.5)
    assert report.skipped == (("2.weight", "is tied to another layer"),)
    assert [row.name for row in report.rows] == ["1.weight"]


def test_other_weights_that_are_left() -> None:
    model = fitted(nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 4)), nn.Linear(4, 4)))
    assert prune(model, snr=0.5).skipped == (("0.weight", "is computed by a parametrization"),)
    attention = fitted(nn.MultiheadAttention(4, 2))
    assert prune(attention, snr=0.5).skipped == (("out_proj.weight", "is read by its parent, which never calls it"),)
    by_basis = fitted(net())
    fit_std(by_basis, [(X, torch.arange(6) % 3)], task="classification", samples=2)
    assert prune(by_basis, snr=0.5).skipped[0][0] == "2.weight"


def test_what_is_refused() -> None:
    model = fitted(net())
    state = copy.deepcopy(model.state_dict())
    for arguments, message in (
        ({}, "one of them"),
        ({"snr": 1.0, "fraction": 0.5}, "one of them"),
        ({"snr": 0.0}, "not a positive number"),
        ({"fraction": 1.0}, "between 0 and 1"),
        ({"snr": 1.0, "by": "chanel"}, "Did you mean 'channel'"),
        ({"snr": 1.0, "loader": [], "task": "classification"}, "no batch"),
    ):
        with pytest.raises(UsageError, match=message):
            prune(model, **arguments)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="still a constant times the weights"):
        prune(bayesify.convert(nn.Linear(64, 64)), fraction=0.5)
    with pytest.raises(NotVariationalError):
        prune(nn.Linear(2, 2), snr=1.0)
    tied = Tied()
    with pytest.raises(UsageError, match=r"no weight that can be pruned: a.weight is tied"):
        prune(fitted(nn.ModuleDict({"a": tied.a, "b": tied.b})), snr=1.0)  # type: ignore[arg-type]
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())


def test_an_interrupt_leaves_the_model_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    model = fitted(net())
    before = model.kl()
    done = torch_prune.custom_from_mask

    def interrupted(layer: Any, *rest: Any) -> Any:
        if layer is model[2]:
            raise KeyboardInterrupt
        return done(layer, *rest)

    monkeypatch.setattr("torch.nn.utils.prune.custom_from_mask", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prune(model, fraction=0.5)
    assert torch.equal(model.kl(), before)
    assert isinstance(model[0]._parameters["weight"], nn.Parameter)
    model(X).sum().backward()
