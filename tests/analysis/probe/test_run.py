"""The runs with example inputs: without a trace, for lazy models and ids, and refused where they cannot be used."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bayesify
from bayesify.errors import UsageError
from tests.analysis.probe.told_models import notes_of, settings_of
from tests.nets import SmallResNet, Tangled


class _Traces(nn.Module):
    """Leaves traces wherever it can."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.bn, self.drop = nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout(0.5)
        self.steps, self.register = 0, 0
        self.register_buffer("count", torch.zeros(()))
        self.drop.eval()

    def forward(self, x: Tensor) -> Tensor:
        self.steps += 1
        self.last = x
        self.count += 1
        self.bn.running_mean = self.bn.running_mean + 1
        random.random()
        return self.drop(self.bn(self.fc(x + torch.randn_like(x))))


def test_the_run_leaves_no_trace() -> None:
    model = _Traces()
    model.fc.requires_grad_(False)
    state = copy.deepcopy(model.state_dict())
    keys, flags = vars(model).keys() | set(), [module.training for module in model.modules()]
    buffers, rng, python = dict(model.named_buffers()), torch.get_rng_state(), random.getstate()
    seeds = torch.cuda._lazy_seed_tracker.get_calls()  # for a device that is not used yet
    bayesify.plan(model, {"frozen": "convert"}, example_inputs=torch.zeros(4, 3))
    assert torch.cuda._lazy_seed_tracker.get_calls() == seeds
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    assert (vars(model).keys(), model.steps, [module.training for module in model.modules()]) == (keys, 0, flags)
    assert all(buffer is buffers[name] for name, buffer in model.named_buffers())
    assert torch.equal(torch.get_rng_state(), rng)
    assert random.getstate() == python
    assert not model.fc.weight.requires_grad
    assert model.fc.weight.grad is None
    assert not model.fc._forward_pre_hooks
    assert torch.backends.mha.get_fastpath_enabled()


class _Grows(nn.Module):
    """Keeps what it computed in a list for its next calls."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.cache, self.seen = nn.Linear(3, 3), [], {"calls": 0}

    def forward(self, x: Tensor) -> Tensor:
        self.cache.append(self.fc(x))
        self.seen["calls"] += 1
        return torch.stack(self.cache).sum(0)


class _Renormalizes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(3, 3) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        self.a.weight.data = torch.renorm(self.a.weight.data, 2, 0, 0.1)
        self.b.weight.data *= 0.5
        with torch.no_grad():
            self.c.weight.clamp_(-0.1, 0.1)
        return self.c(self.b(self.a(x)))


def test_weights_that_the_forward_writes_to_stay() -> None:
    model = _Renormalizes()
    values = {name: value.clone() for name, value in model.state_dict().items()}
    places = [parameter.data_ptr() for parameter in model.parameters()]
    bayesify.plan(model, example_inputs=torch.randn(2, 3))
    assert all(torch.equal(value, values[name]) for name, value in model.state_dict().items())
    assert [parameter.data_ptr() for parameter in model.parameters()] == places


def test_what_is_in_lists_stays_as_it_was() -> None:
    model = _Grows()
    assert notes_of(model, torch.randn(2, 3))["fc"][0] == "called once, (2, 3)"
    assert (model.cache, model.seen) == ([], {"calls": 0})


@pytest.mark.parametrize("given", [torch.tensor([[1, 2, 3]]), {"tokens": torch.zeros(4, 3, dtype=torch.long)}])
def test_ids_are_followed_too(given: Any) -> None:
    settings = settings_of(Tangled(), given, {"rules": [{"targets": ["a", "attn", "twin"]}]})
    assert set(settings.values()) == {(0, 1, 0)}


def test_lazy_models_stay_lazy() -> None:
    model = nn.Sequential(nn.LazyLinear(3))
    assert notes_of(model, torch.randn(2, 5))["0"][0] == "called once, (2, 5)"
    assert model[0].has_uninitialized_params()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (torch.randn(2, 4), "SmallResNet fails with these example_inputs: RuntimeError"),
        ([torch.randn(2, 3, 8, 8)] * 2, "they differ in none"),
        ([torch.randn(2, 3, 8, 8), torch.randn(3, 3, 9, 8)], "differ in more"),
        ([torch.randn(2, 3, 8, 8)] * 3, "a list of 3"),
        (3, "not int"),
        ({"x": 3}, "holds no tensor"),
        (({"x": nn.utils.rnn.pack_sequence([torch.ones(2), torch.ones(1)])},), "PackedSequence, in which none"),
        (torch.nested.nested_tensor([torch.ones(2), torch.ones(1)]), "a nested tensor"),
        (torch.randn(0, 3, 8, 8), "no batch"),
    ],
)
def test_inputs_that_cannot_be_used(given: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        bayesify.plan(SmallResNet(), example_inputs=given)


def test_weights_are_needed() -> None:
    with pytest.raises(UsageError, match="on the meta device"):
        bayesify.plan(SmallResNet().to("meta"), example_inputs=torch.randn(2, 3, 8, 8))
