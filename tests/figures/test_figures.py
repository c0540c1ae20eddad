"""The figures: what each draws is what the inspection, or the prediction, says."""

from __future__ import annotations

import builtins
from typing import Any

import pytest
import torch
from torch import nn

import bayesify
from bayesify.errors import UsageError

pytest.importorskip("matplotlib")

LABELS = torch.arange(60) % 3
X = torch.nn.functional.one_hot(LABELS, 4).float() + 0.5 * torch.randn(
    60, 4, generator=torch.Generator().manual_seed(1)
)


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    model = bayesify.convert(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)))
    for name, parameter in model.named_parameters():
        if name.endswith("rho"):
            parameter.data += torch.randn_like(parameter)
    return model


@pytest.fixture(scope="module")
def found(model: Any) -> bayesify.Inspection:
    return bayesify.inspect(model, [(X, LABELS)], task="classification", samples=8, ood=torch.randn(40, 4))


def test_kl(model: Any, found: bayesify.Inspection) -> None:
    for of in (model, found):
        (axes,) = bayesify.figures.kl(of).axes
        assert [bar.get_width() for bar in axes.patches] == pytest.approx([state.kl for state in found.posteriors])
        assert [label.get_text() for label in axes.get_yticklabels()] == ["0.weight", "2.weight"]


def test_noise_and_prior_ratio(found: bayesify.Inspection) -> None:
    (axes,) = bayesify.figures.noise(found).axes
    assert list(axes.lines[2].get_ydata()) == pytest.approx([state.noise[2] for state in found.posteriors])
    (axes,) = bayesify.figures.prior_ratio(found).axes
    assert list(axes.lines[2].get_ydata()) == pytest.approx([state.prior_ratio[2] for state in found.posteriors])


def test_pruning(found: bayesify.Inspection, model: Any) -> None:
    signal, cost = bayesify.figures.pruning(found).axes
    assert [len(line.get_ydata()) for line in signal.lines] == [10 * len(found.posteriors), 12, 2]
    measured = [point.nll for point in found.pruning if point.nll is not None]
    assert list(cost.lines[0].get_ydata()) == pytest.approx(measured)
    _, cost = bayesify.figures.pruning(model).axes
    assert list(cost.lines[0].get_ydata()) == pytest.approx([point.expected for point in found.pruning])


def test_histogram(found: bayesify.Inspection) -> None:
    (axes,) = bayesify.figures.histogram(found, "2.weight").axes
    assert sum(bar.get_height() for bar in axes.patches) == pytest.approx(100)
    with pytest.raises(UsageError, match=r"Did you mean '2.weight'"):
        bayesify.figures.histogram(found, "2.wieght")


def test_deep_networks_get_bands_in_place_of_names() -> None:
    deep = bayesify.inspect(bayesify.convert(nn.Sequential(*[nn.Linear(3, 3) for _ in range(30)])))
    for draw in (bayesify.figures.kl, bayesify.figures.noise, bayesify.figures.prior_ratio, bayesify.figures.pruning):
        assert draw(deep).axes


def test_of_predictions_from_an_inspection_and_from_a_prediction(model: Any, found: bayesify.Inspection) -> None:
    prediction = bayesify.predict(model, X, task="classification", samples=8, seed=0)
    for of in ((found,), (prediction, LABELS)):
        (axes,) = bayesify.figures.reliability(*of).axes
        assert len(axes.lines) == (3 if len(of) == 1 else 2)
        (axes,) = bayesify.figures.risk_coverage(*of).axes
        assert len(axes.lines) == 2
        (axes,) = bayesify.figures.coverage(*of).axes
        assert all(0 <= covered <= 1 for covered in axes.lines[1].get_ydata())
    (axes,) = bayesify.figures.samples(found).axes
    assert list(axes.lines[0].get_xdata()) == [1, 2, 4, 8]
    other = bayesify.predict(model, torch.randn(40, 4), task="classification", samples=8, seed=0)
    for pair in ((found,), (prediction, other)):
        (axes,) = bayesify.figures.separation(*pair).axes
        assert "AUROC" in axes.get_title(loc="left")


def test_of_a_regression() -> None:
    model = bayesify.convert(nn.Sequential(nn.Linear(4, 1)))
    prediction = bayesify.predict(model, X, task="regression", noise=0.3, samples=8, seed=0)
    assert bayesify.figures.risk_coverage(prediction, X[:, 0]).axes[0].get_ylabel() == "RMSE"
    assert bayesify.figures.coverage(prediction, X[:, 0]).axes
    with pytest.raises(UsageError, match="that of classes"):
        bayesify.figures.reliability(prediction, X[:, 0])


def test_what_is_missing_is_said(model: Any) -> None:
    bare = bayesify.inspect(model)
    for draw in (bayesify.figures.reliability, bayesify.figures.coverage, bayesify.figures.samples):
        with pytest.raises(UsageError, match="had no data"):
            draw(bare)
    with pytest.raises(UsageError, match="had no other data"):
        bayesify.figures.separation(bare)
    prediction = bayesify.predict(model, X, task="classification", samples=2)
    with pytest.raises(UsageError, match="second argument"):
        bayesify.figures.coverage(prediction)


def test_a_name_with_dollars_is_drawn_as_it_is() -> None:
    named = nn.ModuleDict({"$x$_{1}": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    model = bayesify.convert(named, {"method": "flipout", "rules": [{"targets": ["*"]}]})
    figure = bayesify.figures.kl(model)
    figure.canvas.draw()
    labels = [label for label in figure.axes[0].get_yticklabels() if "$" in label.get_text()]
    assert labels
    assert not any(label.get_parse_math() for label in labels)


def test_matplotlib_that_is_not_there(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "matplotlib":
            raise ImportError(name)
        return original(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UsageError, match=r"pip install \"bayesify\[report\]\""):
        bayesify.figures.kl(model)
