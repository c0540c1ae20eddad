"""Forward-mode derivatives of both estimators and of the KL, against reverse mode's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor, nn
from torch.func import functional_call, jacfwd, jacrev, jvp

import bayesify
from bayesify.distributions.normal_kl import NormalTerm, normal_kls
from tests.support import METHODS

LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(3, 2), (4, 3)),
    "conv": (lambda: nn.Conv1d(2, 3, 2, padding=1), (2, 2, 3)),
    "transposed": (lambda: nn.ConvTranspose1d(2, 3, 2), (2, 2, 3)),
    "bilinear": (lambda: nn.Bilinear(2, 2, 3), (3, 2)),
}
WAYS: dict[str, Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]] = {
    "jvp": lambda f, x: jvp(f, (x,), (torch.linspace(-1, 1, x.numel()).to(x).view_as(x),))[1],
    "jacfwd": lambda f, x: jacfwd(f, randomness="same")(x),
    "forward over reverse": lambda f, x: jacfwd(jacrev(lambda v: f(v).sin().sum()), randomness="same")(x),
    "reverse over forward": lambda f, x: jacrev(jacfwd(lambda v: f(v).sin().sum(), randomness="same"))(x),
    "forward over forward": lambda f, x: jacfwd(
        jacfwd(lambda v: f(v).sin().sum(), randomness="same"), randomness="same"
    )(x),
}


def _second(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    found: Tensor = torch.autograd.functional.hessian(lambda v: f(v).sin().sum(), x)  # type: ignore[no-untyped-call]
    return found


def _first(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    found: Tensor = torch.autograd.functional.jacobian(f, x)  # type: ignore[no-untyped-call]
    return found


# torch.autograd's reverse mode, in which the estimators are autograd Functions
REFERENCES: dict[str, Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]] = {
    "jvp": lambda f, x: (_first(f, x) * torch.linspace(-1, 1, x.numel()).to(x).view_as(x)).flatten(-x.dim()).sum(-1),
    "jacfwd": _first,
    "forward over reverse": _second,
    "reverse over forward": _second,
    "forward over forward": _second,
}


def _seeded(layer: nn.Module, wants: str, x: Tensor) -> Callable[[Tensor], Tensor]:
    """The layer's output with the same noise at each call, as a function of its input or of a Parameter."""

    def of(value: Tensor) -> Tensor:
        given = value if wants == "input" else x
        inputs = (given, torch.tanh(given)) if isinstance(layer, nn.Bilinear) else (given,)
        torch.manual_seed(3)
        return functional_call(layer, {} if wants == "input" else {wants: value}, inputs)

    return of


@pytest.mark.parametrize("wants", ["input", "weight", "weight_rho"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("method", METHODS)
def test_derivatives_are_the_formulas(method: Any, name: str, way: str, wants: str) -> None:
    make, shape = LAYERS[name]
    policy = {"method": method, "bias": "variational", "posterior": {"init_std": 0.3}}
    layer = bayesify.convert(make().double(), policy)
    x = torch.randn(*shape, dtype=torch.float64)
    f, value = _seeded(layer, wants, x), x if wants == "input" else layer.get_parameter(wants).detach()
    found = WAYS[way](f, value)
    torch.testing.assert_close(found, REFERENCES[way](f, value))


@pytest.mark.parametrize("wants", ["weight", "weight_rho"])
@pytest.mark.parametrize("method", METHODS)
def test_many_gradients_at_once_are_those_one_by_one(method: Any, wants: str) -> None:
    policy = {"method": method, "bias": "variational", "posterior": {"init_std": 0.3}}
    layer, x = bayesify.convert(nn.Linear(3, 2).double(), policy), torch.randn(4, 3, dtype=torch.float64)
    torch.manual_seed(3)
    output = layer(x)
    value = layer.get_parameter(wants)
    for of in (output, output.square() + layer.kl()):
        rows = torch.eye(8, dtype=torch.float64).view(8, 4, 2)
        batched = torch.autograd.grad(of, value, rows, is_grads_batched=True, retain_graph=True)[0]
        single = [torch.autograd.grad(of, value, row, retain_graph=True)[0] for row in rows]
        torch.testing.assert_close(batched, torch.stack(single))


@pytest.mark.parametrize("method", METHODS)
def test_dual_numbers_pass_a_network(method: Any) -> None:
    model = bayesify.convert(nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1)).double(), method)
    x = torch.randn(4, 3, dtype=torch.float64)
    with forward_ad.dual_level():
        torch.manual_seed(0)
        tangent = forward_ad.unpack_dual(model(forward_ad.make_dual(x, torch.ones_like(x)))).tangent
    assert tangent is not None
    outputs = []
    for step in (1e-5, -1e-5):
        torch.manual_seed(0)
        outputs.append(model(x + step))
    torch.testing.assert_close(tangent, (outputs[0] - outputs[1]) / 2e-5, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("elementwise", [False, True])
def test_the_kl_too(elementwise: bool) -> None:
    mean, rho = (torch.randn(5, dtype=torch.float64) for _ in range(2))
    prior = (torch.randn(5).double(), torch.rand(5).double() + 0.5) if elementwise else (0.1, 0.7)
    at = torch.stack([mean, rho])

    def fast(both: Tensor) -> Tensor:
        return normal_kls([NormalTerm(both[0], both[1], *prior)])

    for name, way in WAYS.items():
        torch.testing.assert_close(way(fast, at), REFERENCES[name](fast, at))
    model = bayesify.convert(nn.Linear(3, 2).double())
    direction = {name: torch.randn_like(value) for name, value in model.named_parameters()}
    values = {name: value.detach() for name, value in model.named_parameters()}

    def kl(given: dict[str, Tensor]) -> Tensor:
        return functional_call(_Kl(model), {f"model.{name}": value for name, value in given.items()}, ())

    _, along = jvp(kl, (values,), (direction,))
    expected = torch.zeros((), dtype=torch.float64)
    for name, value in model.named_parameters():
        (grad,) = torch.autograd.grad(model.kl(), value, allow_unused=True)
        expected += 0 if grad is None else (grad * direction[name]).sum()
    torch.testing.assert_close(along, expected)


class _Kl(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self) -> Tensor:
        return bayesify.kl(self.model)
