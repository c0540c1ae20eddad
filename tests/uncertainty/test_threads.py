"""Threads that predict, draw, ask for the mean and convert at once, with seeds and without: no number comes twice."""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bayesify
from bayesify.estimators.generators import borrowed
from tests.support import METHODS

THREADS, ROUNDS = 8, 60
X = torch.ones(2, 4)
STD = 0.1


def networks(method: Any) -> list[Any]:
    """Of two layers, of which the first gives the numbers and the second is still."""
    plain = nn.Sequential(nn.Linear(4, 16), nn.Linear(16, 16))
    with torch.no_grad():
        plain[1].weight.copy_(torch.eye(16))
    models = [bayesify.convert(plain, {"method": method, "ignore": ["1"]}) for _ in range(2)]
    for model in models:
        bayesify.set_posterior_std(model, STD)
    return models


@pytest.fixture
def fast_switching() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def at_once(work: Callable[[int], None]) -> None:
    failures: list[BaseException] = []

    def run(at: int) -> None:
        try:
            with torch.no_grad():
                work(at)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(at,)) for at in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures[0]


@pytest.mark.usefixtures("fast_switching")
@pytest.mark.parametrize("method", METHODS)
def test_threads_leave_each_other_their_numbers(method: Any) -> None:
    models = networks(method)
    mean = bayesify.revert(models[0])(X).detach()
    alone = bayesify.predict(models[0], X, samples=4, seed=7).mean
    state = {name: value.clone() for name, value in models[0].state_dict().items()}
    fresh: list[Tensor] = []

    def work(at: int) -> None:
        model = models[at % 2]
        for step in range(ROUNDS):
            fresh.append(model(X) - mean)
            if at < 2:
                assert torch.equal(bayesify.predict(model, X, samples=4, seed=7).mean, alone)
            elif at < 4:
                with bayesify.posterior_mean(model):
                    assert torch.equal(model(X), mean)
                assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
            elif at < 6:
                with bayesify.draw(model, seed=step):
                    assert torch.equal(model(X), model(X))
            elif step % 4 == 0:
                inputs = {"example_inputs": X} if at == 7 else {}
                fresh.append(bayesify.convert(nn.Linear(4, 4), method, **inputs)(X))

    at_once(work)
    deviations = torch.stack([each for each in fresh if each.shape == mean.shape])
    rows = deviations[:, 0]
    assert len({tuple(row.tolist()) for row in rows}) == len(rows) == THREADS * ROUNDS  # none twice
    std = STD * 2  # of four inputs of 1
    assert abs(deviations.mean() / std * deviations.numel() ** 0.5) < 5 * 2**0.5  # the two examples may share noise
    z = (rows.square().mean() / std**2 - 1) * (rows.numel() / 2) ** 0.5
    assert abs(z) < 5.5


def test_a_seed_beside_other_threads_leaves_the_generators_alone() -> None:
    model = networks("flipout")[0]
    alone = bayesify.predict(model, X, samples=4, seed=7).mean
    torch.manual_seed(3)
    expected = torch.rand(3)

    def seeded_in_a_thread(at: int) -> None:
        if at == 0:
            torch.manual_seed(3)
        for _ in range(20):
            assert torch.equal(bayesify.predict(model, X, samples=4, seed=7).mean, alone)

    at_once(seeded_in_a_thread)
    assert torch.equal(torch.rand(3), expected)


def test_noise_that_starts_while_a_thread_has_the_generators_is_its_own() -> None:
    model = networks("flipout")[0]
    entered, drawn = threading.Event(), threading.Event()
    outputs: list[Tensor] = []

    def other() -> None:
        entered.wait()
        with torch.no_grad():
            outputs.append(model(X))
        drawn.set()

    thread = threading.Thread(target=other)
    thread.start()
    for _ in range(2):
        with borrowed([]) as alone:
            if alone:
                torch.manual_seed(0)
                outputs.append(model(X).detach())
                torch.manual_seed(0)
            entered.set()
            assert drawn.wait(10)
    thread.join()
    assert not torch.equal(outputs[0], outputs[1])


def test_a_models_own_random_numbers_follow_the_seed_of_a_lone_thread() -> None:
    class Random(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x + torch.randn_like(x))

    model = bayesify.convert(nn.Sequential(Random(4, 4)))
    torch.manual_seed(1)
    before, python = torch.get_rng_state(), random.getstate()
    one, other = (bayesify.predict(model, X, samples=4, seed=7).mean for _ in range(2))
    assert torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), before)
    assert random.getstate() == python
