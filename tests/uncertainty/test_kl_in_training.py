"""The KL by the optimizer's hook against the KL in the loss."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bayesify
from bayesify.errors import NotVariationalError, UsageError
from tests.support import METHODS

N = 50
X, Y = torch.randn(8, 6), torch.randint(3, (8,))


def network(method: str = "flipout") -> Any:
    torch.manual_seed(4)
    policy = {"method": method, "bias": "variational"}
    return bayesify.convert(nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)), policy)


Optimizer = Callable[[Any], torch.optim.Optimizer]
OPTIMIZERS: dict[str, Optimizer] = {
    "sgd": lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9),
    "adam": lambda params: torch.optim.Adam(params, lr=0.01),
    "fused": lambda params: torch.optim.AdamW(params, lr=0.01, weight_decay=0.0, fused=True),
}


def trained(model: Any, optimizer: torch.optim.Optimizer, in_loss: float, accumulated: int = 1, steps: int = 3) -> Any:
    """The model after some steps; `in_loss` is the weight of the KL in each of the accumulated losses."""
    torch.manual_seed(7)
    for _ in range(steps):
        optimizer.zero_grad()
        for x, y in zip(X.chunk(accumulated), Y.chunk(accumulated), strict=True):
            (F.cross_entropy(model(x), y) / accumulated + in_loss * model.kl()).backward()
        optimizer.step()
    return model


def assert_same(one: nn.Module, other: nn.Module) -> None:
    for (name, first), second in zip(one.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("accumulated", [1, 4])
def test_the_same_as_in_the_loss(method: str, kind: str, accumulated: int) -> None:
    expected, model = network(method), network(method)
    trained(expected, OPTIMIZERS[kind](expected.parameters()), 0.7 / N / accumulated, accumulated)
    optimizer = OPTIMIZERS[kind](model.parameters())
    handle = bayesify.attach_kl(optimizer, model, N, beta=0.7)
    trained(model, optimizer, 0.0, accumulated)
    assert_same(model, expected)
    assert handle.steps == 3


def test_a_handle_comes_off() -> None:
    expected, model = network(), network()
    trained(expected, OPTIMIZERS["sgd"](expected.parameters()), 0.0)
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    with bayesify.attach_kl(optimizer, model, N):
        pass
    bayesify.attach_kl(optimizer, model, N).remove()
    trained(model, optimizer, 0.0)
    assert_same(model, expected)


def test_posteriors_that_ended_as_their_priors_are_told() -> None:
    """By the handle's end; not where training failed, and not where no step was made."""
    model = bayesify.convert(nn.Linear(6, 3), {"method": "flipout", "prior": {"mean": "pretrained", "std": 0.1}})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)

    def trained_at(std: float, steps: int) -> None:
        bayesify.set_posterior_std(model, std)
        with bayesify.attach_kl(optimizer, model, N):
            for _ in range(steps):
                model(X).sum().backward()
                optimizer.step()
            assert steps < 2

    with pytest.warns(UserWarning, match="1 posteriors ended as their priors"):
        trained_at(0.1, steps=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trained_at(0.05, steps=1)
        trained_at(0.1, steps=0)
        with pytest.raises(AssertionError):
            trained_at(0.1, steps=2)


def test_a_schedule_counts_steps() -> None:
    beta = bayesify.annealing(4, start=0.1, end=0.9)
    assert [beta(step) for step in (0, 1, 4, 9)] == pytest.approx([0.1, 0.3, 0.9, 0.9])
    expected, model = network(), network()
    reference = torch.optim.SGD(expected.parameters(), lr=0.1)
    for step in range(6):
        reference.zero_grad()
        (beta(step) / N * expected.kl()).backward()
        reference.step()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    bayesify.attach_kl(optimizer, model, N, beta)
    for _ in range(6):
        optimizer.zero_grad()
        optimizer.step()
    assert_same(model, expected)


@pytest.mark.parametrize("by_keyword", [True, False])
@pytest.mark.parametrize("kind", ["sgd", "lbfgs"])
def test_closures_get_the_kl_each_time(kind: str, by_keyword: bool) -> None:
    """A closure clears gradients inside of the step, as Lightning's do; its loss is what a line search sees."""

    def stepped(model: Any, weight: float, attached: bool) -> tuple[Any, list[float]]:
        sgd = torch.optim.SGD(model.parameters(), lr=0.1)
        lbfgs = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=4, line_search_fn="strong_wolfe")
        optimizer: Any = sgd if kind == "sgd" else lbfgs
        if attached:
            bayesify.attach_kl(optimizer, model, N)

        def closure() -> Tensor:
            optimizer.zero_grad()
            with bayesify.posterior_mean(model):
                loss = F.cross_entropy(model(X), Y)
            loss = loss + weight * model.kl() if weight else loss
            loss.backward()
            return loss

        losses = [optimizer.step(closure=closure) if by_keyword else optimizer.step(closure) for _ in range(3)]
        return model, [float(loss.detach()) for loss in losses]

    expected, of_expected = stepped(network(), 1 / N, False)
    model, losses = stepped(network(), 0.0, True)
    assert_same(model, expected)
    assert losses == pytest.approx(of_expected, rel=1e-5)


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("unscaled_first", [True, False])
def test_a_grad_scaler(kind: str, unscaled_first: bool) -> None:
    """It unscales before the step, or lets a fused optimizer do it inside: the KL's gradient is the same."""

    def stepped(model: Any, weight: float, attached: bool) -> Any:
        optimizer = OPTIMIZERS[kind](model.parameters())
        if attached:
            bayesify.attach_kl(optimizer, model, N)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        for _ in range(3):
            optimizer.zero_grad()
            with bayesify.posterior_mean(model):
                loss = F.cross_entropy(model(X), Y)
            scaler.scale(loss + weight * model.kl() if weight else loss).backward()
            if unscaled_first:
                scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
        return model

    assert_same(stepped(network(), 0.0, True), stepped(network(), 1 / N, False))


def test_clipping_with_and_without_the_kl() -> None:
    def stepped(model: Any, weight: float, attached: bool) -> Any:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        handle = bayesify.attach_kl(optimizer, model, N) if attached else None
        for _ in range(3):
            optimizer.zero_grad()
            with bayesify.posterior_mean(model):
                loss = F.cross_entropy(model(X), Y)
            (loss + weight * model.kl() if weight else loss).backward()
            if handle:
                handle.add()
            nn.utils.clip_grad_norm_(model.parameters(), 0.05)
            optimizer.step()
        return model

    assert_same(stepped(network(), 0.0, True), stepped(network(), 1 / N, False))


def test_several_optimizers_each_add_their_own() -> None:
    expected, model = network(), network()
    trained(expected, torch.optim.SGD(expected.parameters(), lr=0.1), 1 / N, steps=1)
    optimizers = [torch.optim.SGD(layer.parameters(), lr=0.1) for layer in (model[0], model[2])]
    for optimizer in optimizers:
        bayesify.attach_kl(optimizer, model, N)
    torch.manual_seed(7)
    F.cross_entropy(model(X), Y).backward()
    for optimizer in optimizers:
        optimizer.step()
    assert_same(model, expected)


def test_elbo() -> None:
    model = network()
    nll = F.cross_entropy(model(X), Y)
    assert torch.equal(bayesify.elbo(nll, model, N, beta=0.5), nll + 0.5 / N * model.kl())


def test_what_cannot_be_meant_is_refused() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(UsageError, match="holds no posterior of this model"):
        bayesify.attach_kl(optimizer, copy.deepcopy(model), N)
    with pytest.raises(NotVariationalError):
        bayesify.attach_kl(optimizer, nn.Linear(2, 2), N)
    for n_train, beta in ((0, 1.0), (-1, 1.0), (N, -0.1), (N, float("nan"))):
        with pytest.raises(UsageError, match="is not a"):
            bayesify.attach_kl(optimizer, model, n_train, beta)
        with pytest.raises(UsageError, match="is not a"):
            bayesify.elbo(torch.zeros(()), model, n_train, beta)
    bayesify.attach_kl(optimizer, model, N)
    with pytest.raises(UsageError, match="already"):
        bayesify.attach_kl(optimizer, model, N)
    with pytest.raises(UsageError, match="annealing"):
        bayesify.annealing(0)


def stepped(model: Any, loss_of: Any, steps: int) -> list[str]:
    """What attach_kl warns of in so many steps, its handle's removal included."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with bayesify.attach_kl(optimizer, model, n_train=10):
            for at in range(steps):
                optimizer.zero_grad(set_to_none=False)
                loss_of(model(torch.ones(3, 4)), at).backward()
                optimizer.step()
    return [str(warning.message) for warning in told]


@pytest.mark.parametrize(("steps", "said"), [(3, "in 3 steps"), (30, "in 10 steps"), (0, None)])
def test_a_loss_that_passes_a_layer_by_is_told(steps: int, said: str | None) -> None:
    class ReadsTheWeight(nn.Module):
        """The caller multiplies by the weight of `head` itself."""

        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return torch.as_tensor(self.body(x))

    model = bayesify.convert(ReadsTheWeight())
    told = stepped(model, lambda hidden, at: (hidden @ model.head.weight.T).square().mean(), steps)  # type: ignore[operator, union-attr]
    assert len(told) == (said is not None)
    assert all(f"{said} the loss gave no gradient to the scales of head.weight: only" in text for text in told)


def test_layers_that_take_turns_are_not_told_of() -> None:
    experts = bayesify.convert(nn.ModuleDict({"a": nn.Linear(4, 2), "b": nn.Linear(4, 2)}))
    experts.forward = lambda x: [experts["a"](x), experts["b"](x)]  # type: ignore[index, operator]
    assert not stepped(experts, lambda out, at: out[at // 5 % 2].sum(), 12)
