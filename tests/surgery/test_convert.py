"""Conversion on whole models: what it gives, and what it leaves alone."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bayesify
from bayesify.errors import (
    NameClashError,
    UsageError,
)
from tests.nets import SmallResNet, randomness, snapshot
from tests.surgery.models import KINDS, METHODS


@KINDS
@pytest.mark.parametrize("method", METHODS)
def test_the_original_and_all_randomness_are_left_alone(make: Any, data: Any, method: str) -> None:
    model = make()
    before = snapshot(model)
    converted = bayesify.convert(model, method)
    assert snapshot(model) == before
    mine = {parameter.untyped_storage().data_ptr() for parameter in [*model.parameters(), *model.buffers()]}
    theirs = {parameter.untyped_storage().data_ptr() for parameter in [*converted.parameters(), *converted.buffers()]}
    assert mine.isdisjoint(theirs)
    assert not hasattr(model, "kl")


@KINDS
def test_in_place_keeps_every_object(make: Any, data: Any) -> None:
    model = make()
    objects = {name: id(parameter) for name, parameter in model.named_parameters()}
    modules = {name: id(module) for name, module in model.named_modules()}
    values, before = [parameter.detach().clone() for parameter in model.parameters()], randomness()
    assert bayesify.convert(model, inplace=True) is model
    assert randomness() == before
    assert {name: id(module) for name, module in model.named_modules()} == modules
    after = {name: id(parameter) for name, parameter in model.named_parameters()}
    assert objects.items() <= after.items()
    assert {name.rpartition("_")[2] for name in after.keys() - objects.keys()} == {"rho"}
    kept = (parameter for name, parameter in model.named_parameters() if name in objects)
    assert all(torch.equal(*pair) for pair in zip(values, kept, strict=True))


@pytest.mark.parametrize("method", METHODS)
def test_what_a_layer_had_it_has(method: Any) -> None:
    model = (
        nn.Sequential(nn.Conv2d(2, 3, 3), nn.Linear(2, 2)).to(torch.float64, memory_format=torch.channels_last).eval()
    )
    model[0].note, model[1].bias.requires_grad = "mine", False  # type: ignore[assignment, union-attr]
    model[0].train()
    bayesify.convert(model, {"method": method, "bias": "variational"}, inplace=True)
    conv, linear = model
    assert (conv.note, conv.training, linear.training) == ("mine", True, False)
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(linear, nn.Linear)
    for parameter in conv.parameters():
        assert parameter.dtype is torch.float64
    assert conv.weight_rho.is_contiguous(memory_format=torch.channels_last)
    assert (linear.weight_rho.requires_grad, linear.bias_rho.requires_grad) == (True, False)


class Structured(nn.Module):
    """Outputs of every shape that a forward has."""

    def __init__(self, wrap: Any) -> None:
        super().__init__()
        self.layers, self.wrap = nn.ModuleDict({"fc": nn.Linear(3, 3)}), wrap

    def forward(self, x: Tensor, *, scale: float = 1.0) -> Any:
        return self.wrap(self.layers["fc"](x) * scale)


@pytest.mark.parametrize("wrap", [tuple, lambda y: {"y": y, "n": 1}, lambda y: [y, None], lambda y: slice(y)])
def test_outputs_keep_their_structure_and_inputs_their_keywords(wrap: Any) -> None:
    model, x = Structured(wrap), torch.randn(2, 3)
    got = bayesify.convert(model)(x, scale=2.0)
    assert type(got) is type(model(x))


def test_hooks_fire_as_before_and_see_the_noise() -> None:
    model, log = nn.Sequential(nn.Linear(3, 3), nn.ReLU()), []
    model[0].register_forward_pre_hook(lambda *_: log.append("before"))
    model[0].register_forward_hook(lambda _, args, output: (log.append("after"), output * 0)[1])
    model[0].register_full_backward_hook(lambda *_: log.append("backward"))
    bayesify.convert(model, inplace=True)
    output = model(torch.randn(2, 3, requires_grad=True))
    output.sum().backward()
    assert log == ["before", "after", "backward"]
    assert torch.equal(output, torch.zeros(2, 3))


def test_the_copy_has_containers_of_its_own() -> None:
    """Those that are empty too: a hook on the copy is none on the original."""
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    model[1].register_forward_hook(lambda *_: None)
    converted = bayesify.convert(model)
    for module, twin in zip(model.modules(), converted.modules(), strict=True):
        containers = {name: value for name, value in vars(module).items() if isinstance(value, dict | set)}
        assert all(type(vars(twin)[name]) is type(value) for name, value in containers.items())
        assert {id(vars(twin)[name]) for name in containers}.isdisjoint(map(id, containers.values()))
    assert len(converted[1]._forward_hooks) == 1


def test_the_policy_is_left_alone() -> None:
    policy = {"method": "lrt", "posterior": {"init_std": 0.1}, "rules": [{"targets": ["first"]}]}
    given = copy.deepcopy(policy)
    bayesify.convert(SmallResNet(), policy)
    assert policy == given


def test_converting_in_inference_mode_gives_a_model_that_trains() -> None:
    layer = nn.Linear(3, 3)
    with torch.inference_mode():
        converted = [bayesify.convert(layer), bayesify.convert(layer, inplace=True)]
    for each in converted:
        (each(torch.ones(1, 3)).sum() + each.kl()).backward()  # type: ignore[operator]
        assert each.weight_rho.grad is not None  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", ["attribute", "method", "child", "buffer", "property"])
def test_a_model_that_has_a_kl_of_its_own(kind: str) -> None:
    cls: Any = type("Own", (nn.Sequential,), {} if kind not in ("method", "property") else {
        "kl": (lambda self: 0) if kind == "method" else property(lambda self: 0)
    })  # fmt: skip
    model = cls(nn.Linear(2, 2))
    if kind == "attribute":
        model.kl = 3.0
    elif kind == "child":
        model.add_module("kl", nn.Identity())
    elif kind == "buffer":
        model.register_buffer("kl", torch.zeros(()))
    before = snapshot(model)
    with pytest.raises(NameClashError, match="kl_name="):
        bayesify.convert(model, inplace=True)
    assert snapshot(model) == before
    bayesify.convert(model, inplace=True, kl_name="kl_q")
    assert model.kl_q() > 0
    assert bayesify.kl(model) == model.kl_q()
    bayesify.revert(model, inplace=True)
    assert snapshot(model)[0] == before[0]


@pytest.mark.parametrize("name", ["forward", "weight", "weight_rho", "_way", "_settings", "estimate", "a b", "1", ""])
def test_names_that_kl_cannot_have(name: str) -> None:
    layer = nn.Linear(2, 2)
    with pytest.raises((NameClashError, UsageError), match="name"):
        bayesify.convert(layer, inplace=True, kl_name=name)
    assert type(layer) is nn.Linear


def test_a_forward_around_the_models_own_is_the_copys() -> None:
    plain: Any = nn.Sequential(nn.Linear(2, 2))
    own = plain.forward
    plain.forward = lambda x: own(x) * 2
    model = bayesify.convert(plain)
    x = torch.ones(1, 2)
    assert not torch.equal(model(x), model(x))
    model.zero_grad()
    model(x).sum().backward()
    assert model[0].weight_rho.grad.any()
    assert plain[0].weight.grad is None
