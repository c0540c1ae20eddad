"""The census counts what a forward does, and leaves no trace of having run it."""

from __future__ import annotations

import random
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune

import bayesify
from bayesify.analysis.census import census
from bayesify.errors import NotCopyableError


class Shared(nn.Module):
    """`a` is called twice, and again under another name; `spare` never; `read` only by its weight."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.read, self.spare = (nn.Linear(4, 4) for _ in range(4))
        self.again = self.a
        self.block = nn.Sequential(nn.Linear(4, 4), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        x = self.again(self.a(self.b(x)))
        return F.linear(self.block(x), self.read.weight, self.read.bias)


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) if x.sum() > 0 else x


class Optional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor, deep: bool = False, *, scale: float = 1.0) -> Tensor:
        return self.b(self.a(x)) if deep and scale > 0 else self.a(x)


class Mutating(nn.Module):
    """Everything that a forward should not do, and does."""

    steps: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)
        self.register_buffer("steps", torch.zeros(()))
        self.log: list[Any] = []
        self.last: Any = None

    def forward(self, x: Tensor) -> Tensor:
        random.random(), np.random.rand(), torch.rand(3)
        self.steps += 1
        if self.steps.item() > 0:
            x = self.a(x)
        self.log.append(x)
        self.last = x
        for parameter in self.parameters():
            parameter.data.zero_()
        self._parameters["a_second"] = None
        self.eval()
        return x


class Endless(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        while True:
            x = x + 1


class Recursing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return self.forward(x)


def test_counts_calls_and_reads_by_canonical_name() -> None:
    found = census(Shared())
    assert found is not None
    assert found.calls == {"": 1, "b": 1, "a": 2, "block": 1, "block.0": 1, "block.1": 1}
    assert found.order == ("", "b", "a", "block", "block.0", "block.1")
    line = Shared.forward.__code__.co_firstlineno + 2
    assert found.reads == {"read": f"{Path(__file__).name}:{line}"}
    assert [name for name, _ in Shared().named_modules() if found.never_called(name)] == ["read", "spare"]


def test_a_tied_parameter_is_read_for_all_of_its_owners() -> None:
    model = Shared()
    model.spare.weight = model.read.weight
    found = census(model)
    assert found is not None
    assert found.reads.keys() == {"read", "spare"}


def test_modules_inside_an_untraced_layer_are_unseen_not_uncalled() -> None:
    model = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 8), nn.Linear(8, 8))
    found = census(model)
    assert found is not None
    assert not found.never_called("0.linear1")
    assert "0.self_attn.out_proj" in found.unseen
    assert found.calls == {"": 1, "0": 1, "1": 1}


@pytest.mark.parametrize("make", [Branching, Endless, Recursing], ids=lambda each: each.__name__)
def test_what_does_not_trace_has_no_census(make: type[nn.Module]) -> None:
    assert census(make()) is None


def test_a_forward_set_on_the_instance_is_not_mistaken_for_the_class_s() -> None:
    model = Shared()
    model.forward = lambda x: x  # type: ignore[method-assign]
    assert census(model) is None


def test_defaults_stand_where_a_proxy_for_them_does_not_trace() -> None:
    found = census(Optional())
    assert found is not None
    assert found.never_called("b")


def test_a_layer_of_the_user_s_own_counts_as_one_call_whatever_it_does_inside() -> None:
    class Picky(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input) if input.sum() > 0 else input

    found = census(nn.Sequential(Picky(2, 2), nn.ReLU()))
    assert found is not None
    assert found.calls == {"": 1, "0": 1, "1": 1}


@pytest.mark.parametrize("layer", [nn.Linear(2, 2), nn.LazyLinear(2)], ids=["plain", "lazy"])
def test_the_root_may_be_the_layer(layer: nn.Module) -> None:
    found = census(layer)
    assert found is not None
    assert found.calls == {"": 1}


def test_the_model_and_all_randomness_stay_as_they_were() -> None:
    model = Mutating()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    found = census(model)
    assert found is not None
    assert found.calls == {"": 1, "a": 1}
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert (model.log, model.last, model.training, len(model._parameters)) == ([], None, True, 0)
    assert random.getstate() == states[0]
    assert np.random.get_state()[1].tolist() == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])
    assert torch.is_grad_enabled()


def test_forward_hooks_do_not_run() -> None:
    model, fired = Shared(), []
    for module in model.modules():
        module.register_forward_hook(lambda *_: fired.append("hook"))
        module.register_forward_pre_hook(lambda *_: fired.append("pre-hook"))
    everywhere = nn.modules.module.register_module_forward_hook(lambda *_: fired.append("global"))
    try:
        assert census(model) is not None
    finally:
        everywhere.remove()
    assert fired == []


def test_no_weight_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(nn.Parameter, "__deepcopy__")
    monkeypatch.setattr(torch.Tensor, "__deepcopy__", lambda *_: pytest.fail("a tensor was deep-copied"))
    assert census(Shared()) is not None


def test_a_model_that_cannot_be_deep_copied_for_its_pruned_weight_still_traces() -> None:
    model = Shared()
    prune.l1_unstructured(model.a, "weight", 0.5)
    found = census(model)
    assert found is not None
    assert found.calls["a"] == 2


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "vit_b_16", "swin_t"])
def test_torchvision_models_trace_in_under_two_seconds(name: str) -> None:
    try:
        from torchvision import models
    except Exception as why:  # a torchvision built for another torch raises RuntimeError
        pytest.skip(f"torchvision: {why}")
    with torch.device("meta"):
        model = getattr(models, name)(weights=None)
    start = time.perf_counter()
    found = census(model)
    assert time.perf_counter() - start < 2
    assert found is not None
    layers = [key for key, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    attention = [key for key in layers if key.endswith((".qkv", ".proj"))]
    assert {key for key in layers if found.calls.get(key) != 1 and key not in found.unseen} == set(attention)
    assert found.reads.keys() == set(attention)


class Caching(nn.Module):
    """It keeps what it computed with gradients, as timm's LeViT does: torch copies no Tensor that is no leaf."""

    def __init__(self) -> None:
        super().__init__()
        self.bias, self.out = nn.Parameter(torch.ones(2, 4)), nn.Linear(4, 4)
        self.cache: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        self.cache.setdefault("cpu", self.bias[0] * 2)
        return self.out(x + self.cache["cpu"])


class Locked(Caching):
    """A lock cannot be copied at all."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()


@pytest.mark.parametrize("cls", [Caching, Locked])
def test_what_torch_cannot_copy_is_planned_all_the_same(cls: type[nn.Module]) -> None:
    model = cls()
    model(torch.randn(2, 4))
    assert (census(model) is None) is (cls is Locked)
    rows = {row.name: row for row in bayesify.plan(model).rows}
    assert rows["out"].verb == "converts"
    assert rows[""].verb == "blocked"
    with pytest.raises(NotCopyableError):
        bayesify.convert(model)
    bayesify.convert(model, inplace=True)
    assert not torch.equal(model(torch.ones(2, 4)), model(torch.ones(2, 4)))
