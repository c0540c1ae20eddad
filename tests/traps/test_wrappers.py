"""Traps: wrappers, sharded models, programs and averages, before and after the conversion."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

import bayesify
from bayesify.errors import AlreadyVariationalError, UsageError, WrappedModelError
from tests.nets import SmallResNet, image
from tests.traps.common import METHODS, differs, reasons


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    meeting = tmp_path_factory.mktemp("group") / "file"
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("wrap", [nn.DataParallel, nn.parallel.DistributedDataParallel, torch.compile])
def test_16_wrapped_models(wrap: Any) -> None:
    wrapped = wrap(SmallResNet())
    with pytest.raises(WrappedModelError, match=r"convert model\.(module|_orig_mod), then (wrap|compile) it again"):
        bayesify.convert(wrapped)
    with pytest.raises(TypeError):
        bayesify.convert(nn.Sequential(wrapped), inplace=True)


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("find_unused_parameters", [False, True])
def test_17_the_kl_outside_of_ddp_s_forward(find_unused_parameters: bool) -> None:
    model = bayesify.convert(nn.Sequential(nn.Linear(3, 3)))
    wrapped = nn.parallel.DistributedDataParallel(model, find_unused_parameters=find_unused_parameters)
    x = torch.randn(4, 3)
    torch.manual_seed(1)
    (wrapped(x).square().sum() + model.kl()).backward()  # type: ignore[operator]
    got = [parameter.grad.clone() for parameter in model.parameters()]  # type: ignore[union-attr]
    model.zero_grad()
    torch.manual_seed(1)
    (model(x).square().sum() + model.kl()).backward()  # type: ignore[operator]
    for mine, parameter in zip(got, model.parameters(), strict=True):
        torch.testing.assert_close(mine, parameter.grad)


@pytest.mark.usefixtures("group")
def test_18_sharded_models() -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (1,))
    model = bayesify.convert(SmallResNet())
    whole, x = model.kl(), image()  # type: ignore[operator]
    for layer in (model.conv1, model.fc, model):
        fully_shard(layer, mesh=mesh)
    assert isinstance(model.fc, bayesify.nn.FlipoutLinear)
    torch.testing.assert_close(model.kl(), whole)  # type: ignore[operator]
    (model(x).sum() + model.kl()).backward()  # type: ignore[operator]
    assert all(parameter.grad is not None for parameter in model.parameters())
    plain = SmallResNet()
    fully_shard(plain, mesh=mesh)
    with pytest.raises(WrappedModelError, match="convert the model first, then shard it"):
        bayesify.convert(plain, inplace=True)


def test_19_programs_and_graphs() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted: Any = torch.jit.script(nn.Linear(2, 2))
    with pytest.raises(UsageError, match="TorchScript"):
        bayesify.convert(scripted)
    assert "TorchScript" in reasons(nn.Sequential(scripted, nn.Linear(2, 2)))["0"]
    exported = torch.export.export(nn.Linear(2, 2), (torch.zeros(1, 2),))
    program: Any = bayesify.convert(exported)  # type: ignore[type-var]
    assert differs(program, torch.ones(1, 2))
    with pytest.raises(UsageError, match="in place"):
        bayesify.convert(exported, inplace=True)  # type: ignore[type-var]
    graph = bayesify.convert(torch.fx.symbolic_trace(nn.Sequential(nn.Linear(2, 2))))
    assert differs(graph, torch.ones(1, 2))
    assert bayesify.kl(copy.deepcopy(graph)) == graph.kl()  # type: ignore[operator]


def test_29_averages_of_weights_come_after() -> None:
    from torch.optim.swa_utils import AveragedModel

    plain = SmallResNet()
    with pytest.raises(WrappedModelError, match="average anew"):
        bayesify.convert(AveragedModel(plain))
    assert "verages" in str(bayesify.convert.__doc__)
    model = bayesify.convert(plain)
    average = AveragedModel(model)
    bayesify.set_posterior_std(model, 0.5)
    average.update_parameters(model)
    for ours, theirs in zip(average.module.parameters(), model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_35_converting_twice() -> None:
    for method in ("flipout", "lrt"):
        with pytest.raises(AlreadyVariationalError, match="revert"):
            bayesify.convert(bayesify.convert(SmallResNet()), method)


@METHODS
def test_36_the_root_may_be_the_layer(method: str) -> None:
    layer = nn.Linear(3, 3)
    assert bayesify.convert(layer, method, inplace=True) is layer
    assert differs(layer, torch.ones(1, 3))
    assert layer.kl() > 0  # type: ignore[operator]
    assert getattr(bayesify, method)(nn.Linear(2, 2)).kl() > 0
