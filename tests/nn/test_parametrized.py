"""Layers that compute their weight: by parametrizations, by the old weight and spectral norm, by pruning."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.utils.checkpoint import checkpoint

import bayesify
from bayesify.errors import UsageError
from bayesify.nn.parametrized_weights import is_computed, sources, value
from bayesify.nn.settings import Method
from tests.support import METHODS, PARAMETERIZATIONS, draws, fixed_noise, judge_mean


class Doubled(nn.Module):
    """A user's own, with a layer inside."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, weight: Tensor) -> Tensor:
        return 2 * self.inner(weight)


def old(function: Callable[..., Any], layer: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
    """torch's deprecated forms, which warn."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        function(layer, *args, **kwargs)
    return layer


def parametrized(layer: nn.Module, name: str, module: nn.Module) -> nn.Module:
    """One more parametrization."""
    parametrize.register_parametrization(layer, name, module)
    return layer


def linear() -> nn.Linear:
    """Six outputs of four inputs."""
    return nn.Linear(4, 6)


KINDS: dict[str, Callable[[], nn.Module]] = {
    "weight_norm": lambda: parametrizations.weight_norm(linear()),
    "spectral_norm": lambda: parametrizations.spectral_norm(linear()),
    "orthogonal": lambda: parametrizations.orthogonal(linear()),
    "one's own": lambda: parametrized(linear(), "weight", Doubled()),
    "two": lambda: parametrized(parametrizations.spectral_norm(linear()), "weight", nn.Tanh()),
    "of the bias": lambda: parametrized(linear(), "bias", nn.Tanh()),
    "old weight_norm": lambda: old(nn.utils.weight_norm, linear()),
    "old spectral_norm": lambda: old(nn.utils.spectral_norm, linear()),
    "pruned": lambda: prune.l1_unstructured(linear(), "weight", 0.5),
    "pruned twice": lambda: prune.random_unstructured(prune.l1_unstructured(linear(), "weight", 0.3), "weight", 0.3),
    "pruned bias": lambda: prune.l1_unstructured(linear(), "bias", 0.5),
}  # fmt: skip
PICKLES = ("old weight_norm", "old spectral_norm", "pruned", "pruned bias")


class Net(nn.Module):
    """A computed layer between two plain ones."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.first, self.layer, self.last = nn.Linear(3, 4), KINDS[kind](), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.layer(self.first(x))))


def same(net: nn.Module) -> nn.Module:
    """A copy of a net that was never called, whose computed tensors torch would not copy."""
    state, kind = net.state_dict(), net.kind
    twin = Net(kind)
    twin.load_state_dict(state)
    return twin.train(net.training)


def net_of(kind: str) -> Any:
    """A plain net that knows what it is."""
    net = Net(kind)
    net.kind = kind  # type: ignore[assignment]
    return net


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_mean_is_recomputed_as_it_was(kind: str, method: Method, training: bool) -> None:
    """Two steps, since spectral norm iterates once in each."""
    plain = net_of(kind).train(training)
    twin, model = same(plain), bayesify.convert(plain, {"method": method, "bias": "variational"})
    assert bayesify.plan(plain).totals["converts"] == 3
    for _ in range(2):
        x = torch.randn(5, 3)
        expected = twin(x)
        with bayesify.posterior_mean(model):
            assert torch.equal(model(x), expected)
        model.kl().backward()
        model.layer.weight_std.sum().backward()
    kept = {key for key in model.state_dict() if "rho" not in key and "prior" not in key}
    assert kept == twin.state_dict().keys()
    for key, tensor in twin.state_dict().items():
        assert torch.equal(model.state_dict()[key], tensor), key


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", KINDS)
def test_noise_and_kl_reach_what_the_weight_is_computed_from(kind: str, method: Method) -> None:
    model = bayesify.convert(net_of(kind).eval(), method)
    x = torch.randn(5, 3)
    with bayesify.posterior_mean(model):
        mean = model(x)
    assert not torch.equal(model(x), mean)
    model(x).square().sum().backward()
    scale = model.layer.scale_of("weight")
    assert scale.grad.abs().max() > 0
    assert scale.shape == model.layer.weight.shape
    model.zero_grad()
    with torch.no_grad():
        for source in sources(model.layer, "weight"):
            source += 0.1 * torch.randn_like(source)
    kl = model.kl()
    assert kl.isfinite()
    kl.backward()
    model.kl().backward()  # and again, from a graph of its own
    assert all(
        source.grad.isfinite().all() and source.grad.abs().max() > 0 for source in sources(model.layer, "weight")
    )


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["weight_norm", "spectral_norm", "old weight_norm", "pruned"])
def test_moments(kind: str, method: Method, parameterization: str) -> None:
    layer = KINDS[kind]().eval()
    model: Any = bayesify.convert(layer, {"method": method, "posterior": {"parameterization": parameterization}})
    bayesify.set_posterior_std(model, 0.5)
    x = torch.randn(3, 4)
    std = model.weight_std.detach()
    spread = draws(model, 4000, x) - layer(x).detach()
    judge_mean("variance", spread.square() / (x.square() @ std.T.square()).clamp_min(1e-9), ((std.sum(1) > 0).float()))
    if kind == "pruned":
        assert torch.equal(std == 0, layer.weight_mask == 0)


@pytest.mark.parametrize("prior", [{"std": 1.0}, {}, {"family": "scale_mixture"}, {"std": {"relative": 1.0}}])
def test_pruned_weights_have_no_kl_and_no_gradient(prior: Any) -> None:
    model: Any = bayesify.convert(KINDS["pruned"](), {"method": "flipout", "prior": prior})
    left = model.weight_mask.bool()
    torch.manual_seed(3)
    kl = model.kl()
    with torch.no_grad():
        model.weight_rho[~left] += 1.0
        model.weight_orig[~left] += 1.0
    torch.manual_seed(3)
    assert torch.equal(model.kl(), kl)
    (model(torch.randn(5, 4)).square().sum() + model.kl()).backward()
    assert model.weight_rho.grad[~left].abs().max() == 0
    assert model.weight_rho.grad[left].abs().min() > 0


@pytest.mark.parametrize("kind", KINDS)
def test_revert_restores(kind: str) -> None:
    plain = net_of(kind).eval()
    model = bayesify.convert(plain)
    back = bayesify.revert(model)
    assert [type(module) for module in back.modules()] == [type(module) for module in plain.modules()]
    assert vars(back.layer).keys() == vars(plain.layer).keys()
    x = torch.randn(2, 3)
    assert torch.equal(back(x), plain(x))
    if "bias" in kind or "pruned" in kind:
        drawn = bayesify.revert(model, "sample")
        assert not torch.equal(drawn(x), plain(x))
        assert torch.equal(drawn(x), drawn(x))
    else:
        with pytest.raises(UsageError, match="the weight of 'layer' is computed by a parametrization"):
            bayesify.revert(model, "sample")


@pytest.mark.parametrize("kind", KINDS)
def test_copies_train_and_optimizers(kind: str) -> None:
    model = bayesify.convert(net_of(kind))
    twin = copy.deepcopy(model)
    x = torch.randn(5, 3)
    torch.manual_seed(1)
    first = model(x)
    torch.manual_seed(1)
    assert torch.equal(twin(x), first)
    assert torch.equal(twin.kl(), model.kl())
    groups = bayesify.param_groups(model, lr=1e-2)
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    optimizer = torch.optim.Adam(groups)
    before = value(model.layer, "weight").detach().clone()
    for _ in range(2):
        optimizer.zero_grad()
        (model(x).square().sum() + model.kl() / 100).backward()
        optimizer.step()
    assert not torch.equal(value(model.layer, "weight"), before)
    torch.manual_seed(2)
    checkpoint(model, x, use_reentrant=False).sum().backward()


@pytest.mark.parametrize("kind", ["weight_norm", "spectral_norm", "one's own"])
def test_compiles_to_one_graph(kind: str) -> None:
    model, x, outcomes = bayesify.convert(KINDS[kind]().eval()), torch.randn(5, 4), []
    torch._dynamo.reset()
    with fixed_noise():
        for function in (model, torch.compile(model, fullgraph=True, backend="aot_eager")):
            output = function(x)
            outcomes.append((output, *torch.autograd.grad(output.square().sum(), model.weight_rho)))
    torch.testing.assert_close(outcomes[1], outcomes[0])


def test_the_plan() -> None:
    rows = {row.name: row for row in bayesify.plan(net_of("one's own")).rows}
    assert (rows["layer"].type, rows["layer"].becomes) == ("Linear", "FlipoutParametrizedLinear")
    assert rows["layer.parametrizations.weight"].verb == "keeps"
    assert rows["layer.parametrizations.weight"].reason == "its layer's weight is computed from it"
    inner = rows["layer.parametrizations.weight.0.inner"]
    assert (inner.verb, inner.reason) == ("blocked", "another layer's weight is computed by it")
    assert bayesify.plan(net_of("weight_norm"), {"rules": [{"targets": ["layer"]}]}).totals["converts"] == 1
    made = bayesify.plan(net_of("pruned"))
    model = bayesify.convert(net_of("pruned"))
    assert made.totals["parameters_after"] == sum(parameter.numel() for parameter in model.parameters())


def test_a_frozen_original_is_frozen() -> None:
    net = net_of("weight_norm")
    net.layer.requires_grad_(False)
    assert {row.name: row for row in bayesify.plan(net).rows}["layer"].reason == "frozen (requires_grad=False)"


def test_convolutions_too() -> None:
    layer = parametrizations.weight_norm(nn.Conv1d(4, 4, 3, groups=2), dim=2)
    model: Any = bayesify.convert(layer)
    x = torch.randn(2, 4, 5)
    with bayesify.posterior_mean(model):
        assert torch.equal(model(x), layer(x))
    assert is_computed(model, "weight")
    assert not torch.equal(model(x), layer(x))


class Reads(nn.Module):
    """Multiplies by what a child computes, without calling it."""

    def __init__(self, child: nn.Module) -> None:
        super().__init__()
        self.child, self.head = child, nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.linear(x, self.child.weight))


@pytest.mark.parametrize("kind", [name for name in KINDS if "bias" not in name])
def test_a_weight_that_a_parent_has_computed_is_never_bypassed(kind: str) -> None:
    rows = {row.name: row for row in bayesify.plan(Reads(KINDS[kind]())).rows}
    assert rows["child"].verb == "blocked"
    assert rows["child"].reason == "Reads reads its weight without calling it: it is computed anew for each reading"
    assert rows["head"].verb == "converts"
