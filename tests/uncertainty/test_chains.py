"""Chains whose structure says that examples stay apart: what is said of them is what a trial finds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bayesify
from bayesify.uncertainty.calls import Call
from bayesify.uncertainty.chains import apart_by_structure
from bayesify.uncertainty.trials import draws_apart, examples_apart
from tests.support import METHODS
from tests.uncertainty.linear_models import network


def mlp() -> list[nn.Module]:
    return [nn.Dropout(0.5), nn.Linear(6, 5), nn.ReLU(), nn.Sequential(nn.Linear(5, 9), nn.GELU()), nn.Linear(9, 2)]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(6,), (2, 3)])
def test_structure_and_trial_agree(method: str, shape: tuple[int, ...]) -> None:
    model = network(method, *([nn.Flatten()] if len(shape) > 1 else []), *mlp())
    call = Call((torch.randn(3, *shape),), {})

    def run(call: Call) -> list[Any]:
        return [model(*call.args)]

    with torch.no_grad():
        told, found = apart_by_structure(model, call), examples_apart(model, run, call)
        assert told is not None
        assert replace(told, counts=None) == replace(found, counts=None)
        assert draws_apart(model, run, call, told.counts) == draws_apart(model, run, call, None)


def test_a_layer_that_stands_twice_is_called_twice() -> None:
    layer = nn.Linear(6, 9)
    told = apart_by_structure(network("lrt", layer, nn.Linear(9, 6), layer), Call((torch.randn(3, 6),), {}))
    assert told is not None
    assert told.numbers == 9


class OwnSequential(nn.Sequential):
    def forward(self, input: Tensor) -> Tensor:
        y: Tensor = super().forward(input)
        return y - y.mean(0)


class OwnTanh(nn.Tanh):
    def forward(self, input: Tensor) -> Tensor:
        return input - input.mean(0)


def _training(model: Any) -> None:
    model[0].train()


def _hooked(model: Any) -> None:
    model[2].register_forward_hook(lambda module, args, output: output - output.mean(0))


def _hooked_outside(model: Any) -> None:
    model[3].register_forward_pre_hook(lambda module, args: (args[0] - args[0].mean(0),))


def _replaced(model: Any) -> None:
    model[2].forward = lambda x: x - x.mean(0)


@pytest.mark.parametrize("change", [_training, _hooked, _hooked_outside, _replaced])
def test_what_is_done_to_a_module_is_seen(change: Callable[[Any], None]) -> None:
    model, call = network("lrt", *mlp()), Call((torch.randn(3, 6),), {})
    assert apart_by_structure(model, call) is not None
    change(model)
    assert apart_by_structure(model, call) is None


@pytest.mark.parametrize(
    ("layers", "shape"),
    [
        ([OwnTanh(), nn.Linear(6, 2)], (3, 6)),
        ([OwnSequential(nn.Linear(6, 2)), nn.Tanh()], (3, 6)),
        ([nn.Softmax(0), nn.Linear(6, 2)], (3, 6)),
        ([nn.Flatten(0), nn.Linear(18, 2)], (3, 6)),
        ([nn.Linear(6, 2)], (3, 4, 6)),
        ([nn.Linear(6, 2)], (6,)),
        ([nn.BatchNorm1d(6), nn.Linear(6, 2)], (3, 6)),
        ([nn.Conv1d(6, 2, 1)], (3, 6, 2)),
        ([nn.Bilinear(6, 6, 2)], (3, 6)),
    ],
    ids=["own tanh", "own chain", "softmax", "flatten", "sequence", "vector", "batch norm", "conv", "bilinear"],
)
def test_what_structure_does_not_tell(layers: list[nn.Module], shape: tuple[int, ...]) -> None:
    assert apart_by_structure(network("lrt", *layers), Call((torch.randn(shape),), {})) is None


def test_other_calls_and_layers_are_tried() -> None:
    model, x = network("flipout", *mlp()), torch.randn(3, 6)
    assert apart_by_structure(model, Call((x,), {})) is not None
    assert apart_by_structure(model, Call((), {"input": x})) is None
    assert apart_by_structure(model, Call((x, x), {})) is None
    with bayesify.draw(model):
        assert apart_by_structure(model, Call((x,), {})) is None
    positions = bayesify.convert(nn.Sequential(*mlp()), {"method": "flipout", "signs": "position"}).eval()
    assert apart_by_structure(positions, Call((x,), {})) is None
    with torch.nn.modules.module.register_module_forward_hook(lambda module, args, output: None):
        assert apart_by_structure(model, Call((x,), {})) is None
    assert apart_by_structure(model, Call((x,), {})) is not None
    model.compile()
    assert apart_by_structure(model, Call((x,), {})) is None


def test_a_prediction_of_a_chain_takes_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = network("flipout", *mlp()), []

    def noting(self: nn.ReLU, x: Tensor) -> Tensor:
        rows.append(len(x))
        return x.relu()

    monkeypatch.setattr(nn.ReLU, "forward", noting)
    bayesify.predict(model, torch.randn(2, 6), samples=8)
    assert rows == [16]
