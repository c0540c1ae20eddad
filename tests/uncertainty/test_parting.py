"""What stands before the first noise is computed once for all draws, where that is known to be right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bayesify
from bayesify.uncertainty.parting import layer_of_parting
from tests.support import METHODS, judge_mean
from tests.uncertainty.linear_models import network


class Own(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.tanh()


class OwnSequential(nn.Sequential):
    def forward(self, input: Tensor) -> Tensor:
        y: Tensor = super().forward(input)
        return y + 1


def _rows_seen(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """By nn.Tanh, which stands before the first noise."""
    rows: list[int] = []

    def forward(self: nn.Tanh, x: Tensor) -> Tensor:
        rows.append(len(x))
        return x.tanh()

    monkeypatch.setattr(nn.Tanh, "forward", forward)
    return rows


def _before(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Tanh(), nn.Dropout(0.5), *layers)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("chain", "shape", "draws"),
    [
        (_before(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 2)), (5,), 8),
        (nn.Sequential(_before(), nn.Sequential(nn.Flatten(), nn.Linear(6, 4)), nn.Linear(4, 2)), (3, 2), 8),
        (_before(nn.Conv1d(3, 4, 2), nn.Flatten(), nn.Linear(4, 2)), (3, 2), 4),
        (_before(nn.Linear(3, 4), nn.Flatten(), nn.Linear(8, 2)), (2, 3), 4),
    ],
)
def test_the_start_is_computed_once(
    method: str, chain: nn.Sequential, shape: tuple[int, ...], draws: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each example is in rows of its own: of two alike and one of zeros, so does their spread tell."""
    model, rows = network(method, *chain), _rows_seen(monkeypatch)
    x = torch.stack([torch.zeros(shape), torch.ones(shape), torch.ones(shape)])
    found = bayesify.predict(model, x, samples=8, keep=True)
    assert rows[-1] == 3
    assert 3 * draws not in rows
    assert found.samples is not None
    assert len(found.samples.flatten(1).unique(dim=0)) == 8
    assert not torch.equal(found.samples[:, 1], found.samples[:, 2])
    assert (found.samples[:, 0].var(0) < found.samples[:, 1].var(0) * 30).all()


def _training(dropout: nn.Module) -> Any:
    return dropout.train()


def _hooked(model: Any) -> None:
    model[0].register_forward_hook(lambda module, args, output: output + torch.randn_like(output))


def _replaced(model: Any) -> None:
    model[0].forward = torch.tanh


@pytest.mark.parametrize(
    ("chain", "change"),
    [
        (nn.Sequential(Own(), nn.Linear(4, 2)), None),
        (OwnSequential(nn.Linear(4, 2)), None),
        (nn.Sequential(OwnSequential(nn.Tanh()), nn.Linear(4, 2)), None),
        (nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 2)), lambda model: model[0].train()),
        (nn.Sequential(nn.Tanh(), nn.Linear(4, 2)), _hooked),
        (nn.Sequential(nn.Tanh(), nn.Linear(4, 2)), _replaced),
        (nn.Sequential(nn.Flatten(0), nn.Unflatten(0, (-1, 4)), nn.Linear(4, 2)), None),
        (nn.Sequential(nn.Tanh(), nn.LSTM(4, 2, batch_first=True)), None),
        (nn.Sequential(nn.FractionalMaxPool2d(2, 2), nn.Conv2d(3, 4, 1)), None),
    ],
)
def test_where_that_is_not_known(chain: nn.Sequential, change: Callable[[Any], Any] | None) -> None:
    model = bayesify.convert(chain, "lrt").eval()
    if change is not None:
        change(model)
    assert layer_of_parting(model) is None


def test_folded_examples_and_held_draws_are_left_alone() -> None:
    model = network("flipout", nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
    assert layer_of_parting(model) is model[0]
    with bayesify.draw(model):
        assert layer_of_parting(model) is None
        found = bayesify.predict(model, torch.randn(3, 4), samples=6)
    torch.testing.assert_close(found.std, torch.zeros(3, 2), atol=1e-3, rtol=0)
    folding: Any = nn.Sequential(nn.Linear(4, 4), nn.Flatten(0, 1), nn.Linear(4, 2), nn.Unflatten(0, (-1, 5)))
    folded = bayesify.convert(folding, "flipout", example_inputs=(torch.randn(3, 5, 4),)).eval()
    assert layer_of_parting(folded) is None


@pytest.mark.parametrize("method", METHODS)
def test_a_layer_that_is_called_twice_parts_once(method: str) -> None:
    """Its second call has noise of its own for each draw: the law of w₂(w₁x), with both of mean 1 and std 0.2."""
    layer = nn.Linear(1, 1, bias=False)
    nn.init.ones_(layer.weight)
    model = network(method, layer, nn.Identity(), layer)
    found = [bayesify.predict(model, torch.ones(2, 1), samples=16, keep=True).samples for _ in range(400)]
    samples = torch.cat([each.double() for each in found if each is not None])
    assert samples.shape == (6400, 2, 1)
    judge_mean("mean", samples.flatten(), 1.0)
    judge_mean("variance", (samples - 1).square().flatten(), 1.04**2 - 1)


@pytest.mark.parametrize("method", METHODS)
def test_a_seed_says_what_is_drawn(method: str) -> None:
    model, x = network(method, nn.Tanh(), nn.Linear(5, 6), nn.Linear(6, 2)), torch.randn(3, 5)
    one, other = (bayesify.predict(model, x, seed=7) for _ in range(2))
    assert torch.equal(one.std, other.std)


def test_a_posterior_in_axes_of_the_inputs_has_products_on_both_sides_of_the_noise() -> None:
    policy = {"posterior": {"basis": "inputs"}}
    model = bayesify.convert(nn.Sequential(nn.Linear(5, 6)), policy, example_inputs=(torch.randn(30, 5),)).eval()
    assert layer_of_parting(model) is None
    assert bayesify.predict(model, torch.randn(3, 5), samples=6).std.min() > 0
