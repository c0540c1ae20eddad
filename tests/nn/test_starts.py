"""Whether a mean or a scale has moved since conversion is known, also after a copy, a file and a reset."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import bayesify
from bayesify.nn.starts import KEPT_AS, moved_since_start


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))


def moved(model: Any) -> list[Any]:
    return [moved_since_start(layer, "weight") for _, layer in bayesify.variational_layers(model)]


def test_a_conversion_is_where_it_starts() -> None:
    model: Any = bayesify.convert(net())
    assert moved(model) == [(False, False)] * 2
    with torch.no_grad():
        model[0].weight[0, 0] += 1e-3
        model[2].weight_rho[1, 1] += 1e-3
    assert moved(model) == [(True, False), (False, True)]
    bayesify.reset_posterior(model)
    assert moved(model) == [(False, False)] * 2


def test_one_number_for_all_is_a_new_start_and_other_numbers_are_not() -> None:
    model: Any = bayesify.convert(net())
    bayesify.set_posterior_std(model, 0.3)
    assert moved(model) == [(False, False)] * 2
    bayesify.set_posterior_std(model, {"0.weight": torch.rand(3, 4) + 0.1})
    assert moved(model) == [(False, True), (False, False)]


@pytest.mark.parametrize("structure", [True, False])
def test_it_goes_with_copies_and_files(structure: bool, tmp_path: Path) -> None:
    model: Any = bayesify.convert(net())
    with torch.no_grad():
        model[2].weight_rho += 0.1
    bayesify.save(model, tmp_path / "model.pt", structure=structure)
    opened = bayesify.load(tmp_path / "model.pt", into=None if structure else net())
    for twin in (copy.deepcopy(model), opened, copy.deepcopy(opened).double()):
        assert moved(twin) == [(False, False), (False, True)]


def test_a_program_keeps_it(tmp_path: Path) -> None:
    model = bayesify.convert(torch.export.export(net().eval(), (torch.randn(2, 4),)))  # type: ignore[type-var]
    assert moved(model) == [(False, False)] * 2
    bayesify.save(model, tmp_path / "model.pt")
    assert moved(bayesify.load(tmp_path / "model.pt")) == [(False, False)] * 2


def test_nothing_is_known_without_values_and_nothing_stays_after_revert() -> None:
    with torch.device("meta"):
        assert moved(bayesify.convert(net())) == [None, None]
    assert moved(nn.Sequential(bayesify.nn.FlipoutLinear(2, 2))) == [None]
    lazy = bayesify.convert(nn.Sequential(nn.LazyLinear(2)))
    assert moved(lazy) == [None]
    lazy(torch.randn(3, 4))
    assert moved(lazy) == [None]
    plain = bayesify.revert(bayesify.convert(net()))
    assert not any(KEPT_AS in vars(module) for module in plain.modules())


def test_a_scale_without_noise_has_moved() -> None:
    layer = bayesify.flipout(nn.Linear(3, 3))
    layer.set_std("weight", 0.0)
    assert moved_since_start(layer, "weight") == (False, True)
