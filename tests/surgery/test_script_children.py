"""Models with TorchScript modules inside: these stay as they are, and all around them converts and trains."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bayesify

CHILDREN: dict[str, Callable[[], Any]] = {
    "scripted": lambda: torch.jit.script(nn.Sequential(nn.Linear(4, 4), nn.ReLU())),
    "one layer": lambda: torch.jit.script(nn.Linear(4, 4)),
    "traced": lambda: torch.jit.trace(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), torch.randn(2, 4)),
}


class _Around(nn.Module):
    def __init__(self, child: Any) -> None:
        super().__init__()
        self.child, self.head = child, nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.child(x))


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("told", [False, True])
@pytest.mark.parametrize("name", CHILDREN)
def test_the_rest_converts_and_trains(name: str, told: bool, inplace: bool) -> None:
    net, x = _Around(CHILDREN[name]()), torch.randn(8, 4)
    frozen = next(iter(net.child.parameters())).requires_grad_(False)
    expected = net(x)
    rows = {row.name: row for row in bayesify.plan(net).rows}
    assert rows["head"].verb == "converts"
    assert all(row.verb == "blocked" and "TorchScript" in str(row.reason) for key, row in rows.items() if key != "head")
    model: Any = bayesify.convert(net, example_inputs=x if told else None, inplace=inplace)
    with bayesify.posterior_mean(model):
        assert torch.equal(model(x), expected)
    optimizer = torch.optim.SGD(bayesify.param_groups(model, lr=0.1), lr=0.1)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    (model(x).square().sum() + model.kl()).backward()
    optimizer.step()
    moved = [not torch.equal(*pair) for pair in zip(before, model.parameters(), strict=True)]
    assert moved.count(False) == 1  # the frozen one
    assert not frozen.requires_grad
    reverted = bayesify.revert(model)
    assert type(reverted.head) is nn.Linear
    reverted(x)
    state = io.BytesIO()
    torch.save(model.state_dict(), state)
