"""Switches belong to the thread or task that asked: nobody else sees them, no copy keeps them, compiled code obeys."""

from __future__ import annotations

import asyncio
import contextvars
import copy
import gc
import io
import pickle
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.utils.checkpoint import checkpoint

import bayesify
from bayesify.nn.switches import MEAN, is_quiet, switched, way_of

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


@contextmanager
def quick_switching() -> Iterator[None]:
    """Threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def at_once(*works: Callable[[], Any]) -> list[Any]:
    with quick_switching(), ThreadPoolExecutor(len(works)) as pool:
        return [future.result() for future in [pool.submit(work) for work in works]]


def is_noisy(model: Any, x: Tensor) -> bool:
    with torch.no_grad():
        return not torch.equal(model(x), model(x))


# threads and tasks


@pytest.mark.parametrize("method", METHODS)
def test_eight_threads_on_one_model(method: Any) -> None:
    """Four predict, two compute the mean, one reads the state_dict, one copies: none sees another's switch or draw."""
    plain, x = network().eval(), torch.randn(2, 3, 4)
    model = bayesify.convert(plain, method)
    with torch.no_grad(), bayesify.posterior_mean(model):
        mean, state = model(x), {name: each.clone() for name, each in model.state_dict().items()}
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


# blocks


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


# copies and files


def _saved(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded: nn.Module = torch.load(file, weights_only=True)
    return loaded


@pytest.mark.parametrize("way", [copy.deepcopy, copy.copy, lambda each: pickle.loads(pickle.dumps(each)), _saved])
@pytest.mark.parametrize("method", METHODS)
def test_a_copy_made_inside_is_noisy(method: Any, way: Any) -> None:
    model, x = bayesify.convert(nn.Linear(4, 4), method), torch.randn(2, 4)
    with bayesify.posterior_mean(model):
        twin = way(model)
        assert is_noisy(twin, x)
        assert not is_noisy(model, x)
    assert is_noisy(twin, x)
    assert is_noisy(model, x)


@pytest.mark.parametrize("method", METHODS)
def test_a_file_written_inside_is_noisy(tmp_path: Any, method: Any) -> None:
    model, x = bayesify.convert(nn.Linear(4, 4), method), torch.randn(2, 4)
    with bayesify.posterior_mean(model):
        bayesify.save(model, tmp_path / "model.pt")
        assert is_noisy(bayesify.load(tmp_path / "model.pt"), x)


# checkpointing and compiled code


@pytest.mark.parametrize("reentrant", [False, True])
def test_what_checkpointing_computes_again_obeys_the_block(reentrant: bool) -> None:
    plain, x = nn.Sequential(nn.Linear(4, 4), nn.Tanh()).double(), torch.randn(3, 4, dtype=torch.double)
    model = bayesify.convert(plain)
    x.requires_grad_()
    with bayesify.posterior_mean(model):
        checkpoint(model, x, use_reentrant=reentrant).sum().backward()
    (expected,) = torch.autograd.grad(plain(x).sum(), x)
    assert torch.equal(x.grad, expected)


def test_threads_of_autograd_see_what_their_caller_switched() -> None:
    """On a GPU they run what checkpointing computes again; here a thread is given what torch would give it."""
    layer, seen = bayesify.convert(nn.Linear(2, 2)), []
    with bayesify.posterior_mean(layer):
        handed = torch._C._get_obj_in_tls("bayesify_switched")

    def elsewhere() -> None:
        seen.append(is_quiet(layer))
        torch._C._stash_obj_in_tls("bayesify_switched", handed)
        seen.append(is_quiet(layer))  # no backward pass runs here
        x = torch.ones(1, requires_grad=True)
        x.register_hook(lambda _: seen.append(is_quiet(layer)))
        x.sum().backward()

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen == [False, False, True]


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("method", METHODS)
def test_compiled_code_obeys_and_is_not_compiled_again(method: Any, backend: str) -> None:
    plain = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    model, x = bayesify.convert(plain, method), torch.randn(3, 4)
    torch._dynamo.reset()
    counters.clear()
    run = torch.compile(model, fullgraph=True, backend=backend)

    def all_ways() -> list[bool]:
        seen = [is_noisy(run, x)]
        with bayesify.posterior_mean(model):
            seen.append(is_noisy(run, x))
            with torch.no_grad():
                torch.testing.assert_close(run(x), plain(x))
        with bayesify.posterior_mean(model[0]):
            seen.append(is_noisy(run, x))
        return seen

    assert all_ways() == [True, False, True]
    made = counters["stats"]["unique_graphs"]
    assert made == 3
    assert all_ways() == [True, False, True]
    with bayesify.posterior_mean(model):
        assert at_once(all_ways) == [[True, False, True]]
    assert counters["stats"]["unique_graphs"] == made


# draws of weights that a forward computes with


class Twice(torch.autograd.Function):
    """A function of the user's."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> Tensor:
        return 2 * weight

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 2 * grad


WAYS: dict[str, Callable[[nn.Module], Tensor]] = {
    "attribute": lambda module: 2 * module.weight,
    "dict of Parameters": lambda module: 2 * module._parameters["weight"],
    "parameters()": lambda module: 2 * next(module.parameters()),
    "a view as an attribute": lambda module: (2 * module.weight.T).T,
    "a function of the user's": lambda module: Twice.apply(module.weight),
}


class Ways(nn.Module):
    """Comes to its weight in a way that may be set afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.way = nn.Parameter(torch.randn(3, 4)), "attribute"

    def forward(self, x: Tensor) -> tuple[Tensor, Any]:
        return F.linear(x, WAYS[self.way](self).exp()), self.state_dict()["weight"]


@pytest.mark.parametrize("way", WAYS)
def test_a_draw_is_there_by_whatever_way_the_code_comes_to_the_weight(way: str) -> None:
    layer, x = bayesify.convert(Ways()), torch.randn(2, 4)
    assert layer._settings.drawn == ("weight",)
    layer.way = way
    torch.manual_seed(3)
    output, saved = layer(x)
    torch.manual_seed(3)
    draw = layer._sampled("weight")
    assert torch.equal(output, F.linear(x, (2 * draw).exp()))
    assert torch.equal(saved, layer.weight)  # a state_dict beside a forward has the mean
    layer.zero_grad()
    output.sum().backward()
    assert layer.scale_of("weight").grad.abs().sum() > 0


def test_threads_of_data_parallel_would_not_see_a_block() -> None:
    model = bayesify.convert(nn.Sequential(nn.Linear(2, 2)))
    assert type(model[0]._replicate_for_data_parallel()) is type(model[0])
    with bayesify.posterior_mean(model), pytest.raises(bayesify.errors.UsageError, match="DataParallel"):
        model[0]._replicate_for_data_parallel()
