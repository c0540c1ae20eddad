"""Models that are refused as a whole say what to do instead."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

import bayesify.nn.linear
from bayesify.errors import AlreadyVariationalError, UsageError, WrappedModelError
from bayesify.planning.refusals import refuse_model


def _net(inner: nn.Module | None = None) -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 2) if inner is None else inner, nn.Linear(2, 2))


def _scripted() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(_net())


REFUSED: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "DataParallel": (
        lambda: nn.DataParallel(_net()),
        WrappedModelError,
        "the model is wrapped in DataParallel: convert model.module, then wrap it again",
    ),
    "DataParallel inside": (
        lambda: _net(nn.DataParallel(nn.Linear(2, 2))),
        WrappedModelError,
        "'0' is wrapped in DataParallel: convert model.0.module, then wrap it again",
    ),
    "compiled": (
        lambda: torch.compile(_net()),
        WrappedModelError,
        "the model is compiled by torch.compile: convert model._orig_mod, then compile it again",
    ),
    "compiled inside": (
        lambda: _net(torch.compile(nn.Linear(2, 2))),  # type: ignore[arg-type]
        WrappedModelError,
        "'0' is compiled by torch.compile: convert model.0._orig_mod, then compile it again",
    ),
    "averaged": (lambda: AveragedModel(_net()), WrappedModelError, "convert model.module, then average anew"),
    "converted": (
        lambda: _net(bayesify.nn.linear.FlipoutLinear(2, 2)),
        AlreadyVariationalError,
        "already variational: layer '0' is a FlipoutLinear; bayesify.revert(model) first",
    ),
    "converted root": (
        lambda: bayesify.nn.linear.LRTLinear(2, 2),
        AlreadyVariationalError,
        "already variational: the model is a LRTLinear; bayesify.revert(model) first",
    ),
    "scripted": (_scripted, UsageError, "TorchScript"),
    "class": (lambda: nn.Transformer, UsageError, "the class Transformer: make a model of it first, Transformer(...)"),
    "state_dict": (lambda: _net().state_dict(), UsageError, "a OrderedDict of 4 entries: build the model"),
    "path": (lambda: "resnet.pt", UsageError, "and was given a str"),
}


@pytest.mark.parametrize(("make", "error", "words"), REFUSED.values(), ids=REFUSED)
def test_refused(make: Callable[[], Any], error: type[Exception], words: str) -> None:
    for refuse in (refuse_model, bayesify.plan, bayesify.convert):
        with pytest.raises(error) as caught:
            refuse(make())
        assert words in str(caught.value)


def test_refused_distributed(tmp_path: Any) -> None:
    dist = torch.distributed
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        with pytest.raises(WrappedModelError, match=r"wrapped in DistributedDataParallel: convert model\.module"):
            refuse_model(nn.parallel.DistributedDataParallel(_net()))
        from torch.distributed.fsdp import fully_shard

        model = _net()
        fully_shard(model[1], mesh=dist.init_device_mesh("cpu", (1,)))
        with pytest.raises(WrappedModelError, match=r"'1' was sharded by fully_shard: convert the model first"):
            refuse_model(model)
    finally:
        dist.destroy_process_group()


def test_fsdp1_is_known_by_its_true_name() -> None:
    from torch.distributed.fsdp import FullyShardedDataParallel

    from bayesify.planning.refusals import _WRAPPERS

    assert f"{FullyShardedDataParallel.__module__}.{FullyShardedDataParallel.__qualname__}" in _WRAPPERS


@pytest.mark.parametrize(
    "make",
    [_net, lambda: nn.Linear(2, 2), lambda: torch.fx.symbolic_trace(_net())],
    ids=["net", "layer", "GraphModule"],
)
def test_accepted(make: Callable[[], nn.Module]) -> None:
    refuse_model(make())


def test_a_model_compiled_in_place_is_accepted_since_a_swapped_class_is_compiled_anew() -> None:
    model, x = _net().eval(), torch.randn(3, 2)
    model.compile(backend="eager")
    before = model(x)
    refuse_model(model)
    model[0].__class__ = _Doubled
    calls: list[nn.Module] = []
    model[0].register_forward_hook(lambda module, *_: calls.append(module))
    assert not torch.equal(model(x), before)
    assert calls == [model[0]]


class _Doubled(nn.Linear):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(input) + 1
