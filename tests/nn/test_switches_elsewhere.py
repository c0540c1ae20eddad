"""Switches in what runs later or elsewhere: copies, files, checkpointing, autograd's threads, compiled code."""

from __future__ import annotations

import copy
import io
import pickle
import threading
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters
from torch.utils.checkpoint import checkpoint

import bayesify
from bayesify.nn.switches import is_quiet
from tests.nn.switched_models import at_once, is_noisy

from ..support import METHODS


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


def test_threads_of_data_parallel_would_not_see_a_block() -> None:
    model = bayesify.convert(nn.Sequential(nn.Linear(2, 2)))
    assert type(model[0]._replicate_for_data_parallel()) is type(model[0])
    with bayesify.posterior_mean(model), pytest.raises(bayesify.errors.UsageError, match="DataParallel"):
        model[0]._replicate_for_data_parallel()
