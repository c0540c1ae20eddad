"""Traps: what code around layers does with them, held to the law of networks that are drawn one by one.

`sample` gives plain networks, one draw of all weights each. Moments of their outputs are those that a forward with
noise must have, as long as each layer is called once for an example.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

import bayesify
from tests.traps.common import METHODS

X = torch.linspace(-1, 1, 18, dtype=torch.float64).view(3, 6).sin()
DRAWS = 400


class Trunk(nn.Module):
    """Two heads on one trunk, called by a method of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.pi, self.value = nn.Sequential(nn.Linear(6, 8), nn.Tanh()), nn.Linear(8, 2), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Any:
        return torch.cat(self.evaluate(x), -1)

    def evaluate(self, x: Tensor) -> Any:
        h = self.trunk(x)
        return self.pi(h), self.value(h)


class Hypernetwork(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Linear(6, 24)

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("boi,bi->bo", self.weights(x).view(-1, 4, 6), x)


class Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.experts = nn.Linear(6, 2), nn.ModuleList(nn.Linear(6, 6) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        weights, y = self.gate(x).softmax(-1), torch.zeros_like(x)
        for at, expert in enumerate(self.experts):
            rows = (x[:, 0] > 0).long().eq(at).nonzero().squeeze(-1)
            y = y.index_add(0, rows, expert(x[rows]) * weights[rows, at, None])
        return y


class Modulated(nn.Module):
    """A weight scaled for each example, as StyleGAN2's: grouped convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.style = nn.Parameter(torch.randn(4, 2, 3)), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight[None] * self.style(x).view(-1, 1, 2, 1)
        weight = weight * torch.rsqrt(weight.square().sum((2, 3), keepdim=True) + 1e-8)
        rows = x.view(1, 2 * len(x), 3)
        return F.conv1d(rows, weight.flatten(0, 1), groups=len(x)).view(len(x), 4)


class Masked(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * torch.ones_like(self.weight).tril(), self.bias)


class Equalized(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.scale = nn.Parameter(torch.randn(4, 6)), 6**-0.5

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.scale)


class Coupling(nn.Module):
    """A step of a normalizing flow: values, and the logarithm of the volume."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 6))

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, -1)
        scale, shift = self.net(a).chunk(2, -1)
        scale = scale.tanh()
        return torch.cat([a, b * scale.exp() + shift, scale.sum(-1, keepdim=True)], -1)


class FakeQuantized(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.layer.weight
        step = weight.detach().abs().max() / 127
        return F.linear(x, weight + ((weight / step).round() * step - weight).detach(), self.layer.bias)


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block, self.last = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6)), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(checkpoint(self.block, x, use_reentrant=False))  # type: ignore[no-any-return]


class OtherParameters(nn.Module):
    """The layer under other values of its Parameters, as in meta-learning."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.last = nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        values = {name: 1.1 * value for name, value in self.layer.named_parameters()}
        return self.last(functional_call(self.layer, values, (x,)))  # type: ignore[no-any-return]


class InnerStep(nn.Module):
    """A gradient step on the weight inside of the forward."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            weight = self.layer.weight
            (step,) = torch.autograd.grad(F.linear(x, weight).square().mean(), weight, create_graph=True)
        return F.linear(x, weight - 0.1 * step, self.layer.bias)


class Force(nn.Module):
    """The gradient of an energy in its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 8), nn.Softplus(), nn.Linear(8, 1))

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            return -torch.autograd.grad(self.net(x).sum(), x, create_graph=True)[0]


class KeepsMethods(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 2)
        self.run, self.calls = self.a.forward, {"b": self.b.__call__}

    def forward(self, x: Tensor) -> Tensor:
        return self.calls["b"](self.run(x).tanh())  # type: ignore[no-any-return]


class Delegates(nn.Module):
    """Answers for what it does not have by its child."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(6, 4))

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner")[0], name)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)


KINDS = [
    Trunk, Hypernetwork, Experts, Modulated, Equalized, Coupling, FakeQuantized, Checkpointed, OtherParameters,
    InnerStep, KeepsMethods, Delegates,
]  # fmt: skip


def converted(plain: nn.Module, method: str) -> Any:
    model = bayesify.convert(plain.double(), method)
    bayesify.set_posterior_std(model, 0.05)
    return model


def _masked() -> nn.Module:
    return nn.Sequential(Masked(6, 6), nn.Tanh(), Masked(6, 6))


@METHODS
@pytest.mark.parametrize("kind", [*KINDS, _masked], ids=lambda kind: kind.__name__)
def test_outputs_have_the_law_of_drawn_networks(kind: Any, method: str) -> None:
    torch.manual_seed(0)
    plain = kind()
    model = converted(plain, method)
    with bayesify.posterior_mean(model):
        assert torch.equal(model(X), plain(X))
    assert torch.equal(bayesify.revert(model)(X), plain(X))
    model(X).square().sum().backward()
    for _, layer in bayesify.variational_layers(model):
        assert all(layer.scale_of(name).grad.any() for name in layer.means())  # type: ignore[union-attr]
    assert model.kl().item() == pytest.approx(sum(kl.item() for kl in model.kl.by_layer().values()))
    assert_law(model)


def assert_law(model: Any) -> None:
    """Means within 6 standard errors, the variances' mean logarithm within 5 if all outputs were one: 0.1 each."""
    with torch.no_grad():
        ours = torch.stack([model(X).flatten() for _ in range(DRAWS)])
        theirs = torch.stack([bayesify.sample(model)(X).flatten() for _ in range(DRAWS)])
    noisy = theirs.var(0) > 1e-9 * theirs.var(0).max()
    error = ((ours.var(0) + theirs.var(0)) / DRAWS).sqrt().clamp_min(1e-12)
    assert ((ours.mean(0) - theirs.mean(0)).abs() / error).max() < 6
    assert (ours.var(0)[noisy].log() - theirs.var(0)[noisy].log()).mean().abs() < 0.5


def test_a_derivative_that_a_forward_takes_has_flipouts_law_and_lrts_is_noted() -> None:
    torch.manual_seed(0)
    assert_law(converted(Force(), "flipout"))
    notes = ["; ".join(row.notes) for row in bayesify.plan(Force(), "lrt").rows]
    assert all("forward takes derivatives, of which LRT's noise has another law" in own for own in notes)
    assert not any(row.notes for row in bayesify.plan(Force(), "flipout").rows)


class TiedDeconvolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(2, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv_transpose1d(self.conv(x).relu(), self.conv.weight)


def test_a_weight_that_is_multiplied_by_beside_its_layer_draws_anew_and_says_so() -> None:
    row = bayesify.plan(TiedDeconvolution()).rows[-1]
    assert any(note.startswith("each of its calls draws anew") for note in row.notes)
    row = bayesify.plan(TiedDeconvolution(), "lrt").rows[-1]
    assert "approximate: LRT ignores that its calls share one weight" in row.notes


def test_a_policy_that_is_called_by_its_methods_has_noise() -> None:
    model = converted(Trunk(), "flipout")
    assert not torch.equal(model.evaluate(X)[0], model.evaluate(X)[0])


def test_a_weight_that_a_partial_function_holds_is_refused() -> None:
    class Holds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.last = nn.Linear(6, 6), nn.Linear(6, 2)
            weight = self.layer.weight
            self.run = lambda x: F.linear(x, weight)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.run(x))  # type: ignore[no-any-return]

    with pytest.raises(bayesify.BayesifyError):
        bayesify.convert(Holds(), inplace=True)(X.float())
