"""Models whose draws must not stand beside each other, and odd ones whose draws may: a loop of forwards tells."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import bayesify
from bayesify.uncertainty import passes
from bayesify.uncertainty.calls import Call
from tests.support import METHODS, judge


class Given(nn.Module):
    """Two layers, and what is given beside them, within a forward that is given."""

    def __init__(self, forward: Callable[..., Any], **modules: nn.Module) -> None:
        super().__init__()
        self.layer, self.other, self.given = nn.Linear(6, 6), nn.Linear(6, 2), forward
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x: Tensor) -> Any:
        return self.given(self, x)


def _exits_early(model: Any, x: Tensor) -> Tensor:
    y = model.layer(x)
    return model.other(y) if y.mean() > 0 else -y[:, :2]


def _goes_by_a_list(model: Any, x: Tensor) -> Tensor:
    y = model.layer(x)
    return model.other(y) * (1 if sum(y[:, 0].tolist()) > 0 else -1)


def _goes_by_memory(model: Any, x: Tensor) -> Tensor:
    y = model.layer(x)
    return model.other(y) * (1 if y.detach().numpy().sum() > 0 else -1)


def _over_the_largest(model: Any, x: Tensor) -> Tensor:
    y = model.layer(x)
    return model.other(y / y.abs().max())


def _of_ids_over_the_largest(model: Any, x: Tensor) -> Tensor:
    return _over_the_largest(model, x[:, :1].float().expand(-1, 6))


def _centred(model: Any, x: Tensor) -> Tensor:
    y = model.layer(x)
    return model.other((y - y.mean(0)).tanh())


def _of_a_vector(model: Any, x: Tensor) -> Tensor:
    return _centred(model, x[:, None].expand(-1, 6))


def _of_ids(model: Any, x: Tensor) -> Tensor:
    return _centred(model, model.table(x))


def _attends_to_the_batch(model: Any, x: Tensor) -> Tensor:
    y = model.layer(x)
    return model.other(torch.softmax(y @ y.T / 9, -1) @ y)


def _with_noise_for_all(model: Any, x: Tensor) -> Tensor:
    y: Tensor = model.other(model.layer(x)) + torch.randn(1)
    return y


def _with_a_little_noise_for_all(model: Any, x: Tensor) -> Tensor:
    y: Tensor = model.other(model.layer(x)) + 1e-9 * torch.randn(1)
    return y


def _of_one(model: Any, x: Tensor) -> Tensor:
    y: Tensor = model.other(model.layer(x).mean(0))
    return y


def _with_a_loss(model: Any, x: Tensor) -> Any:
    y = model.other(model.layer(x))
    return y, y.square().mean()


def _normalized(model: Any, x: Tensor) -> Tensor:
    y: Tensor = model.other(model.norm(model.layer(x)))
    return y


def _rows(count: int) -> Tensor:
    return torch.randn(count, 6)


TOGETHER: dict[str, tuple[Callable[..., Any], Tensor, dict[str, nn.Module]]] = {
    "exits early": (_exits_early, _rows(3), {}),
    "goes by a list": (_goes_by_a_list, _rows(3), {}),
    "goes by memory": (_goes_by_memory, _rows(3), {}),
    "over the largest": (_over_the_largest, _rows(1), {}),
    "over the largest of ids": (_of_ids_over_the_largest, torch.tensor([[8, 1]]), {}),
    "under a head of zeros": (_centred, _rows(1), {"other": nn.Linear(6, 2)}),
    "of a vector": (_of_a_vector, torch.randn(1), {}),
    "of a vector of ids": (_of_ids, torch.tensor([3]), {"table": nn.Embedding(9, 6)}),
    "of zeros": (_centred, torch.zeros(2, 6), {}),
    "attends to the batch": (_attends_to_the_batch, _rows(3), {}),
    "noise for all": (_with_noise_for_all, _rows(2), {}),
    "a little noise for all": (_with_a_little_noise_for_all, _rows(2), {}),
    "sequence first": (_of_one, torch.randn(5, 2, 6), {}),
    "with a loss": (_with_a_loss, _rows(3), {}),
    "batch norm in train mode": (_normalized, _rows(3), {"norm": nn.BatchNorm1d(6)}),
    "dropout in train mode": (_normalized, _rows(2), {"norm": nn.Dropout(0.5)}),
}


def _writes_a_cache(model: Any, x: Tensor) -> Tensor:
    model.calls = getattr(model, "calls", 0) + 1
    model.cache = model.layer(x)
    y: Tensor = model.other(model.cache)
    return y


def _sorts(model: Any, x: Tensor) -> Tensor:
    order = x[:, 0].argsort()
    y: Tensor = model.other(model.layer(x[order]))[order.argsort()]
    return y


def _writes_to_its_input(model: Any, x: Tensor) -> Tensor:
    y = model.layer(x.mul_(2))
    x.zero_()
    z: Tensor = model.other(y)
    return z


def _one_by_one(model: Any, x: Tensor) -> Tensor:
    return torch.cat([model.other(model.layer(row)) for row in x.split(1)])


def _in_threes(model: Any, x: Tensor) -> Tensor:
    return torch.cat([model.other(model.layer(rows)) for rows in x.split(3)])


def _twice(model: Any, x: Tensor) -> Tensor:
    y: Tensor = model.layer(model.layer(x).tanh()) - model.layer(x.flip(-1))
    return y


def _without_gradients(model: Any, x: Tensor) -> Any:
    with torch.no_grad():
        y = model.layer(x)
    return {"logits": model.other(y), "features": (x, y)}


def _by_the_input(model: Any, x: Tensor) -> Tensor:
    y: Tensor = model.other(model.layer(x)) if x.sum() > 0 else model.other(x)
    return y


def _looks_at_the_input(model: Any, x: Tensor) -> Tensor:
    y: Tensor = model.other(model.layer(x))
    return y if x.abs().max() < 100 else y / 0


def _row_noise(model: Any, x: Tensor) -> Tensor:
    y: Tensor = model.other(model.layer(x) + torch.randn_like(x))
    return y


def _residual(model: Any, x: Tensor) -> Tensor:
    y: Tensor = model.other(x + model.layer(x))
    return y


BESIDE: dict[str, tuple[Callable[..., Any], Tensor, dict[str, nn.Module]]] = {
    "writes a cache": (_writes_a_cache, _rows(2), {}),
    "sorts": (_sorts, _rows(3), {}),
    "writes to its input": (_writes_to_its_input, _rows(2), {}),
    "one by one": (_one_by_one, _rows(2), {}),
    "in threes": (_in_threes, _rows(4), {}),
    "twice": (_twice, _rows(2), {}),
    "without gradients": (_without_gradients, _rows(2), {}),
    "by the input": (_by_the_input, _rows(1).abs(), {}),
    "looks at the input": (_looks_at_the_input, _rows(2), {}),
    "a residual of zeros": (_residual, torch.zeros(2, 6), {}),
    "noise for each row": (_row_noise, _rows(2), {}),
}


def odd(name: str, method: str) -> tuple[Any, Tensor]:
    forward, x, modules = (TOGETHER | BESIDE)[name]
    plain = Given(forward, **modules)
    if "other" in modules:
        nn.init.zeros_(plain.other.weight)
    model: Any = bayesify.convert(plain, method).eval()
    bayesify.set_posterior_std(model, 0.3)
    for module in model.children():
        module.train("train mode" in name and module is getattr(model, "norm", None))
    return model, x.clone()


def floats(output: Any) -> list[Tensor]:
    return [leaf.double() for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]


@pytest.mark.parametrize("name", TOGETHER)
@pytest.mark.parametrize("method", METHODS)
def test_draws_that_must_not_stand_beside_each_other(name: str, method: str) -> None:
    model, x = odd(name, method)
    sampler = passes.Sampler(model, lambda call: pytree.tree_leaves(model(*call.args)))
    with torch.no_grad():
        assert sampler.foldable(Call((x,), {})) == 1
        assert not sampler.examples_apart(Call((x,), {}))


@pytest.mark.parametrize("name", ["sorts", "without gradients", "looks at the input", "a residual of zeros"])
@pytest.mark.parametrize("method", METHODS)
def test_draws_that_may(name: str, method: str) -> None:
    model, x = odd(name, method)
    sampler = passes.Sampler(model, lambda call: pytree.tree_leaves(model(*call.args)))
    with torch.no_grad():
        assert sampler.foldable(Call((x,), {})) > 1


@pytest.mark.parametrize("name", [*TOGETHER, *BESIDE])
@pytest.mark.parametrize("method", METHODS)
def test_the_law_is_that_of_a_loop(name: str, method: str) -> None:
    """Mean and variance over draws, and how far the mean of 16 is off: draws have nothing in common."""
    model, x = odd(name, method)
    with torch.no_grad():
        outputs = [floats(model(x.clone())) for _ in range(1000)]
    found = [bayesify.predict(model, x.clone(), samples=16) for _ in range(50)]
    for at in range(len(outputs[0])):
        loop = torch.stack([each[at] for each in outputs])
        means = torch.stack([floats(each.mean)[at] for each in found])
        variances = torch.stack([floats(each.total)[at] for each in found])
        squares, off = (loop - loop.mean(0)).square(), (means - loop.mean(0)).square()
        for what, ours, theirs in (
            ("mean", means, loop), ("variance", variances, squares), ("mean's variance", off, squares / 16)
        ):  # fmt: skip
            error = (ours.var(0) / len(ours) + theirs.var(0) / len(theirs)).sqrt() + 1e-7
            judge(f"{what} of {name}", ours.mean(0) - theirs.mean(0), error)
