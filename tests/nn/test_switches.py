"""Switches belong to the thread or task that asked: nobody else sees them, no copy keeps them, compiled code obeys."""

from __future__ import annotations

import asyncio
import contextvars
import copy
import gc
import weakref
from contextlib import ExitStack
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bayesify
from bayesify.nn.switches import MEAN, is_quiet, switched, way_of
from tests.nn.switched_models import at_once, is_noisy

from ..support import METHODS


class Standardized(nn.Module):
    """Computes with its weight before it multiplies by it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight - self.weight.mean(1, keepdim=True))


def network() -> nn.Module:
    heads = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
    return nn.Sequential(nn.Linear(4, 4), Standardized(), nn.GRU(4, 4, batch_first=True), First(), heads)


class First(nn.Module):
    """What a recurrent layer gives, without its state."""

    def forward(self, given: tuple[Tensor, Tensor]) -> Tensor:
        return given[0]


@pytest.mark.parametrize("method", METHODS)
def test_eight_threads_on_one_model(method: Any) -> None:
    """Four predict, two compute the mean, one reads the state_dict, one copies: none sees another's switch or draw."""
    plain, x = network().eval(), torch.randn(2, 3, 4)
    model = bayesify.convert(plain, method)
    with torch.no_grad(), bayesify.posterior_mean(model):
        mean, state = model(x), {name: value.clone() for name, value in model.state_dict().items()}
    torch.testing.assert_close(mean, plain(x))

    def predict() -> list[Tensor]:
        with torch.no_grad():
            return [model(x) for _ in range(60)]

    def means() -> bool:
        with torch.no_grad(), bayesify.posterior_mean(model):
            return all(torch.equal(model(x), mean) for _ in range(60))

    def saves() -> bool:
        states = (model.state_dict() for _ in range(200))
        return all(torch.equal(each, state[name]) for found in states for name, each in found.items())

    def copies() -> bool:
        return all(is_noisy(copy.deepcopy(model), x) for _ in range(10))

    *predictions, first, second, saved, copied = at_once(*[predict] * 4, means, means, saves, copies)
    assert (first, second, saved, copied) == (True, True, True, True)
    outputs = [output for found in predictions for output in found]
    assert not any(torch.equal(output, mean) for output in outputs)
    assert len({tuple(output.flatten().tolist()) for output in outputs}) == len(outputs)
    assert is_noisy(model, x)


def test_a_task_has_switches_of_its_own() -> None:
    model, x = bayesify.convert(nn.Linear(4, 4)), torch.randn(2, 4)

    async def quiet(steps: int) -> list[bool]:
        seen = []
        with bayesify.posterior_mean(model):
            for _ in range(steps):
                seen.append(is_noisy(model, x))
                await asyncio.sleep(0)
        return [*seen, not is_noisy(model, x)]

    async def noisy() -> list[bool]:
        seen = []
        for _ in range(8):
            seen.append(not is_noisy(model, x))
            await asyncio.sleep(0)
        return seen

    async def both() -> list[list[bool]]:
        return await asyncio.gather(quiet(3), noisy(), quiet(6))

    assert not any(any(seen) for seen in asyncio.run(both()))


def test_a_thread_started_inside_is_another_caller() -> None:
    model, x = bayesify.convert(nn.Linear(4, 4)), torch.randn(2, 4)
    with bayesify.posterior_mean(model):
        assert at_once(lambda: is_noisy(model, x)) == [True]
        assert at_once(lambda: contextvars.copy_context().run(is_noisy, model, x)) == [True]
        inherited = contextvars.copy_context()
        assert at_once(lambda: inherited.run(is_noisy, model, x)) == [False]


def test_blocks_nest_overlap_and_end_in_any_order() -> None:
    model = bayesify.convert(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))
    first, second = model
    with ExitStack() as outer:
        inner = ExitStack()
        inner.enter_context(bayesify.posterior_mean(model))
        outer.enter_context(bayesify.posterior_mean(first))
        assert is_quiet(first)
        assert is_quiet(second)
        inner.close()  # before the one that was opened after it
        assert is_quiet(first)
        assert not is_quiet(second)
    assert not is_quiet(first)
    with pytest.raises(KeyError), bayesify.posterior_mean(model):
        raise KeyError
    assert way_of(first) is None


def test_the_inner_block_counts() -> None:
    layer, held = bayesify.convert(nn.Linear(2, 2)), object()
    with switched({layer: held}):
        assert way_of(layer) is held
        with switched({layer: MEAN}):
            assert is_quiet(layer)
        assert way_of(layer) is held


def test_a_context_that_outlives_its_block_keeps_no_model() -> None:
    model = bayesify.convert(nn.Linear(2, 2))
    with bayesify.posterior_mean(model):
        context = contextvars.copy_context()
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
    assert context.run(lambda: not is_quiet(bayesify.convert(nn.Linear(2, 2))))
