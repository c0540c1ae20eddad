"""What is a batch, a loader or an argument, and outputs of which predict makes no mean or doubts where classes are."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bayesify
from bayesify.errors import UsageError

from .test_calls import A, B, Forward, Optional, Two, Y, mean


class Graphs:
    """As torch_geometric's batches are: one iterates over their parts, and they can be moved."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y

    def __iter__(self) -> Iterator[Any]:
        return iter(vars(self).items())

    def to(self, device: Any) -> Graphs:
        return self


class TakesGraphs(Forward):
    def forward(self, batch: Graphs) -> Tensor:
        y: Tensor = self.layer(batch.x)
        return y


class TakesList(Forward):
    def forward(self, parts: list[Any]) -> Tensor:
        y: Tensor = self.layer(torch.cat([part["x"] if isinstance(part, dict) else part for part in parts]))
        return y


def test_a_list_is_a_loader_where_it_holds_batches() -> None:
    for batches in ([(A[:4], Y[:4]), (A[4:], Y[4:])], [{"a": A[:4], "labels": Y[:4]}, {"a": A[4:]}]):
        model = Optional()
        torch.testing.assert_close(mean(model, batches), model(A).detach())
    taker = TakesList()
    for given in (list(A.split(4)), [{"x": A[:4]}, {"x": A[4:]}]):
        torch.testing.assert_close(mean(taker, given), taker(given).detach())


def test_a_batch_of_a_librarys_own_is_no_loader() -> None:
    model, labels = TakesGraphs(), torch.randint(3, (6,))
    torch.testing.assert_close(mean(model, Graphs(A, labels)), model(Graphs(A, labels)).detach())
    converted = bayesify.convert(model, "flipout")
    own = bayesify.calibrate(converted, iter([Graphs(A, labels)]), task="classification", samples=2)
    pairs = bayesify.calibrate(converted, [(Graphs(A, labels), labels)], task="classification", samples=2)
    assert own.scores[0] == pairs.scores[0]  # of the mean network


def test_a_tuple_of_all_arguments_and_a_target() -> None:
    model, labels = bayesify.convert(Two(), "flipout"), torch.randint(3, (6,))
    found = bayesify.calibrate(model, [((A, B), labels)], task="classification", samples=2)
    assert found.task == "classification"


class Found(Forward):
    """As a detector, it gives what it is sure of."""

    def forward(self, a: Tensor) -> dict[str, Tensor]:
        y = self.layer(a).flatten()
        return {"scores": y, "kept": y[y > 0]}


def test_an_output_of_another_shape_in_each_draw_has_no_mean() -> None:
    model: Any = bayesify.convert(Found(), "flipout")
    bayesify.set_posterior_std(model, 1.0)
    with pytest.raises(UsageError, match=r"Found is of another shape in each draw, \(\d+,\) and \(\d+,\).*output="):
        bayesify.predict(model, A, samples=32)
    assert bayesify.predict(model, A, samples=32, output="scores").mean.shape == (18,)


def test_columns_of_images_are_no_classes() -> None:
    x = torch.randn(2, 3, 5, 5)
    model = bayesify.convert(nn.Conv2d(3, 4, 3, padding=1), "flipout")
    with pytest.warns(UserWarning, match=r"last dimension of the output \(2, 4, 5, 5\).*dim=1"):
        bayesify.predict(model, x, task="classification", samples=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bayesify.predict(model, x, task="classification", samples=2, dim=1)
        bayesify.predict(model, x, samples=2)
        per_token = bayesify.convert(nn.Linear(5, 4), "flipout")
        bayesify.predict(per_token, x, task="classification", samples=2)
