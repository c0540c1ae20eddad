"""Optimizers know the scales: faster than the means, without weight decay, each once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import bayesify
from bayesify.errors import UsageError
from bayesify.surgery.optimizer import SCALE_SPEED
from tests.nets import SmallResNet, Tangled, image

BIASES = {"method": "flipout", "bias": "variational", "frozen": "convert"}


def is_scale(name: str) -> bool:
    return name.endswith(("_rho", "_log_alpha"))


def scales(model: nn.Module) -> set[int]:
    return {id(parameter) for name, parameter in model.named_parameters() if is_scale(name)}


def ids(group: dict[str, Any]) -> list[int]:
    return [id(parameter) for parameter in group["params"]]


@pytest.mark.parametrize("policy", ["flipout", BIASES, {"posterior": {"parameterization": "multiplicative"}}])
@pytest.mark.parametrize("make", [SmallResNet, Tangled, lambda: nn.Linear(2, 2)])
def test_every_parameter_is_in_one_group_and_scales_are_apart(make: Any, policy: Any) -> None:
    model = bayesify.convert(make(), policy)
    others, fast = bayesify.param_groups(model, lr=0.01, weight_decay=0.1, betas=(0.8, 0.9))
    assert sorted(ids(others) + ids(fast)) == sorted(id(parameter) for parameter in model.parameters())
    assert set(ids(fast)) == scales(model)
    assert len(ids(fast)) == len(scales(model)) > 0
    assert (others["lr"], others["weight_decay"], others["betas"]) == (0.01, 0.1, (0.8, 0.9))
    assert (fast["lr"], fast["weight_decay"], fast["betas"]) == (pytest.approx(0.02), 0.0, (0.8, 0.9))


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW, torch.optim.RMSprop, torch.optim.Adagrad])
def test_the_groups_train_with_any_optimizer(optimizer: Any) -> None:
    model = bayesify.convert(SmallResNet())
    stepper = optimizer(bayesify.param_groups(model, lr=1e-3))
    before = {name: value.clone() for name, value in model.state_dict().items() if is_scale(name)}
    (model(image()).square().mean() + model.kl() / 100).backward()  # type: ignore[operator]
    stepper.step()
    assert all(not torch.equal(model.state_dict()[name], value) for name, value in before.items())


def extended(make: Any, optimizer: Any, policy: Any = "flipout", **options: Any) -> tuple[nn.Module, Any]:
    model = make()
    stepper = optimizer(model.parameters(), **options)
    bayesify.convert(model, policy, inplace=True)
    bayesify.extend_optimizer(stepper, model)
    return model, stepper


@pytest.mark.parametrize("policy", ["flipout", BIASES])
@pytest.mark.parametrize("make", [SmallResNet, Tangled, lambda: nn.Linear(2, 2)])
@pytest.mark.parametrize(
    ("optimizer", "options"),
    [(torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}), (torch.optim.AdamW, {"lr": 0.1})],
)
def test_an_optimizer_made_before_learns_of_the_scales(optimizer: Any, options: Any, make: Any, policy: Any) -> None:
    model, stepper = extended(make, optimizer, policy, **options)
    means, fast = stepper.param_groups
    assert set(ids(fast)) == scales(model)
    assert {**fast, "params": 0, "lr": 0, "weight_decay": 0} == {**means, "params": 0, "lr": 0, "weight_decay": 0}
    assert (fast["lr"], fast["weight_decay"]) == (SCALE_SPEED * 0.1, 0.0)
    everything = [key for group in stepper.param_groups for key in ids(group)]
    assert sorted(everything) == sorted(id(parameter) for parameter in model.parameters())
    bayesify.extend_optimizer(stepper, model)
    assert [key for group in stepper.param_groups for key in ids(group)] == everything


def test_momentum_of_the_means_is_kept_and_scales_move() -> None:
    model, x = nn.Linear(3, 3), torch.randn(4, 3)
    stepper = torch.optim.Adam(model.parameters(), lr=0.1)
    model(x).sum().backward()
    stepper.step()
    kept = stepper.state[model.weight]["exp_avg"]
    bayesify.convert(model, inplace=True)
    bayesify.extend_optimizer(stepper, model)
    before = model.weight_rho.detach().clone()  # type: ignore[operator, union-attr]
    (model(x).square().sum() + model.kl()).backward()  # type: ignore[operator]
    stepper.step()
    assert stepper.state[model.weight]["exp_avg"] is kept
    assert not torch.equal(model.weight_rho, before)  # type: ignore[arg-type]


def test_each_scale_joins_as_its_mean_s_group_says() -> None:
    model = SmallResNet()
    head, rest = (
        list(model.fc.parameters()),
        [parameter for key, parameter in model.named_parameters() if "fc" not in key],
    )
    stepper = torch.optim.SGD(
        [{"params": rest, "lr": 0.1}, {"params": head, "lr": 0.01, "momentum": 0.5}], weight_decay=0.2
    )
    bayesify.convert(model, inplace=True)
    bayesify.extend_optimizer(stepper, model)
    assert len(stepper.param_groups) == 4
    (of_head,) = (group for group in stepper.param_groups if ids(group) == [id(model.fc.weight_rho)])
    assert (of_head["lr"], of_head["momentum"], of_head["weight_decay"]) == (pytest.approx(0.02), 0.5, 0.0)


def test_only_scales_whose_mean_is_there_join() -> None:
    model = SmallResNet()
    stepper = torch.optim.SGD(model.fc.parameters(), lr=0.1)
    bayesify.convert(model, inplace=True)
    bayesify.extend_optimizer(stepper, model)
    assert [ids(group) for group in stepper.param_groups[1:]] == [[id(model.fc.weight_rho)]]


def test_names_of_parameters_go_on() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    stepper = torch.optim.Adam(model.named_parameters(), lr=0.1)
    bayesify.convert(model, inplace=True)
    bayesify.extend_optimizer(stepper, model)
    assert stepper.param_groups[1]["param_names"] == ["0.weight_rho", "1.weight_rho"]
    stepper.load_state_dict(stepper.state_dict())


def test_a_scheduler_made_afterwards_keeps_the_scales_ten_times_as_fast() -> None:
    """Even where an earlier scheduler left its `initial_lr` in the group."""
    model = nn.Linear(2, 2)
    stepper = torch.optim.SGD(model.parameters(), lr=0.1)
    earlier = torch.optim.lr_scheduler.StepLR(stepper, 1, gamma=0.5)
    stepper.step()
    earlier.step()
    bayesify.convert(model, inplace=True)
    bayesify.extend_optimizer(stepper, model)
    later = torch.optim.lr_scheduler.LambdaLR(stepper, lambda epoch: 0.1**epoch)
    for _ in range(3):
        slow, fast = (group["lr"] for group in stepper.param_groups)
        assert fast == pytest.approx(SCALE_SPEED * slow)
        stepper.step()
        later.step()


def test_the_optimizer_of_a_model_that_was_copied_is_refused() -> None:
    model = SmallResNet()
    stepper = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(UsageError, match=r"inplace=True, or make a new optimizer from bayesify\.param_groups"):
        bayesify.extend_optimizer(stepper, bayesify.convert(model))
    assert len(stepper.param_groups) == 1
