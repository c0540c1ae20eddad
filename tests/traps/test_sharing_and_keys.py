"""Traps: weights and modules that stand in several places, and their copies, names and files."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import nn

import bayesify
from tests.nets import SmallResNet
from tests.traps.common import PRETRAINED, differs, reasons


def test_04_tied_parameters() -> None:
    model: Any = nn.ModuleDict(
        {"emb": nn.Embedding(6, 4), "a": nn.Linear(4, 4), "c": nn.Linear(4, 4), "head": nn.Linear(4, 6)}
    )
    model.head.weight, model.c.weight = model.emb.weight, model.a.weight  # type: ignore[union-attr, assignment]
    model = bayesify.convert(model)
    assert model.head.weight is model.emb.weight
    assert model.c.weight is model.a.weight
    assert model.c.weight_rho is model.a.weight_rho
    hand = model.a.kl_divergence() + model.head.kl_divergence()
    torch.testing.assert_close(model.kl(), hand)
    assert model.kl.by_layer().keys() == {"a", "head"}


@pytest.mark.parametrize("name", ["a", "b"])
def test_05_modules_registered_twice(name: str) -> None:
    model = nn.ModuleDict({"a": nn.Linear(3, 3), "other": nn.Linear(3, 3)})
    model["b"] = model["a"]
    converted: Any = bayesify.convert(model, {"method": "flipout", "rules": [{"targets": [name]}]})
    assert converted.a is converted.b
    assert differs(converted.a, torch.ones(2, 3))
    assert converted.kl.by_layer().keys() == {"a"}
    assert type(converted.other) is nn.Linear


def test_06_modules_in_plain_lists() -> None:
    model: Any = nn.Sequential(nn.Linear(3, 3))
    model.listed, model.closure = [model[0]], lambda x, layer=model[0]: layer(x)
    bayesify.convert(model, inplace=True)
    assert differs(model.listed[0], torch.ones(2, 3))
    assert not torch.equal(model.closure(torch.ones(2, 3)), model.closure(torch.ones(2, 3)))
    model = nn.Sequential(nn.Linear(3, 3))
    model.listed = [nn.Linear(3, 3)]
    assert "not registered" in reasons(model)["listed[0]"]


def test_26_copies() -> None:
    model = bayesify.convert(SmallResNet())
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for clone in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(file, weights_only=False)):
        assert clone.kl.root is clone
        bayesify.set_posterior_std(clone, 0.5)
        assert clone.kl() != model.kl()  # type: ignore[operator]
        assert type(clone.fc) is type(model.fc)


def test_27_keys_of_the_state_dict() -> None:
    plain = SmallResNet()
    model = bayesify.convert(plain, PRETRAINED)
    missing, unexpected = model.load_state_dict(plain.state_dict(), strict=False)
    assert {name.rpartition(".weight_")[2] for name in missing} == {"rho", "prior_mean"}
    assert not unexpected
    missing, unexpected = plain.load_state_dict(model.state_dict(), strict=False)
    assert not missing
    with pytest.raises(RuntimeError, match="weight_rho"):
        model.load_state_dict(plain.state_dict())
    bayesify.load_weights(model, plain.state_dict())


def test_28_safetensors_and_shared_tensors(tmp_path: Any) -> None:
    from safetensors.torch import load_model, save_model

    def make() -> nn.Module:
        model = nn.ModuleDict({"fc": nn.Linear(3, 3), "twin": nn.Linear(3, 3)})
        model["again"], model["twin"].weight = model["fc"], model["fc"].weight  # type: ignore[assignment]
        return bayesify.convert(model)

    model, other = make(), make()
    bayesify.set_posterior_std(model, 0.3)
    save_model(model, str(tmp_path / "model.safetensors"))
    load_model(other, str(tmp_path / "model.safetensors"))
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items())
    assert other.twin.weight_rho is other.fc.weight_rho  # type: ignore[union-attr]


def test_30_an_optimizer_made_before_does_not_know_the_scales() -> None:
    model = SmallResNet()
    stepper = torch.optim.SGD(model.parameters(), lr=0.1)
    bayesify.convert(model, inplace=True)
    bayesify.extend_optimizer(stepper, model)
    assert sum(len(group["params"]) for group in stepper.param_groups) == len(list(model.parameters()))


def test_31_frozen_layers() -> None:
    model = SmallResNet()
    model.fc.requires_grad_(False)
    assert type(bayesify.convert(model).fc) is nn.Linear
    converted = bayesify.convert(model, {"method": "flipout", "frozen": "convert"})
    assert [parameter.requires_grad for parameter in converted.fc.parameters()] == [False] * 3
    assert converted.layer1[0].conv1.weight_rho.requires_grad  # type: ignore[union-attr]
