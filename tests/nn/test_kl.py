"""The ledger: every posterior once, at any time, whatever the forward passes did."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal as TorchNormal
from torch.distributions import kl_divergence
from torch.utils.checkpoint import checkpoint

from bayesify.distributions.posterior import Posterior, Scale
from bayesify.distributions.prior import LogUniform, Normal, Prior, ScaleMixture, log_uniform_kl
from bayesify.errors import NotVariationalError, UninitializedLayerError
from bayesify.nn import Settings
from bayesify.nn.kl import Ledger, terms, total_kl, variational_layers
from bayesify.nn.layer_kinds import fan_in
from bayesify.nn.settings import Method
from tests.support import METHODS, PARAMETERIZATIONS, noisy, variational


def _model(method: Method = "flipout", settings: Settings | None = None) -> nn.Sequential:
    inner = nn.Sequential(variational(nn.Linear(4, 4), method, settings), nn.ReLU())
    return nn.Sequential(inner, nn.Linear(4, 4), variational(nn.Linear(4, 2), method, settings))


@pytest.mark.parametrize("method", METHODS)
def test_the_ledger_sums_nested_layers(method: Method) -> None:
    model = _model(method)
    ledger = Ledger(model)
    expected = model[0][0].kl_divergence() + model[2].kl_divergence()
    for _ in range(2):
        torch.testing.assert_close(ledger(), expected)
    assert torch.equal(total_kl(model), ledger())
    assert set(ledger.by_layer()) == {"0.0", "2"}
    torch.testing.assert_close(sum(ledger.by_layer().values()), expected)
    assert [name for name, _ in variational_layers(model)] == ["0.0", "2"]


def test_only_what_was_reached() -> None:
    model = _model()
    ledger = Ledger(model)
    assert ledger(reached=True) == 0
    model[2](torch.randn(3, 4))
    model[2](torch.randn(3, 4))
    assert torch.equal(ledger(reached=True), model[2].kl_divergence())
    model(torch.randn(3, 4))
    assert torch.equal(ledger(reached=True), ledger())
    ledger.reset()
    assert ledger(reached=True) == 0
    assert ledger() > 0


def test_kl_follows_the_parameters_and_keeps_no_graph() -> None:
    model = _model()
    ledger = Ledger(model)
    model(torch.randn(3, 4))
    before = ledger()
    before.backward()
    ledger().backward()
    model[2].weight_rho.data += 1
    assert not torch.equal(ledger(), before)
    assert not any(isinstance(value, Tensor) for layer in model.modules() for value in vars(layer).values())


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_counts_once(reentrant: bool) -> None:
    model = _model()
    ledger = Ledger(model)
    expected = torch.autograd.grad(ledger(), model[0][0].weight_rho)[0]
    output = checkpoint(model, torch.randn(3, 4, requires_grad=True), use_reentrant=reentrant)
    (0 * output.sum() + ledger(reached=True)).backward()
    torch.testing.assert_close(model[0][0].weight_rho.grad, expected)


def test_a_shared_layer_and_a_tied_weight_count_once() -> None:
    layer = variational(nn.Linear(4, 4), "flipout")
    twin = variational(nn.Linear(4, 4), "lrt")
    for name in ("weight", "weight_rho"):
        setattr(twin, name, getattr(layer, name))
    model = nn.ModuleDict({"a": layer, "b": layer, "c": twin})
    found = terms(model)
    assert [(each.layer_name, each.mean_name) for each in found] == [("a", "weight"), ("a", "bias"), ("c", "bias")]
    assert found[0].layers == (layer, twin)
    torch.testing.assert_close(total_kl(model), layer.kl_divergence() + found[2].evaluate())
    twin(torch.randn(1, 4))
    torch.testing.assert_close(Ledger(model)(reached=True), found[0].evaluate() + found[2].evaluate())


def test_the_ledger_follows_its_model() -> None:
    model: Any = _model()
    model.kl = Ledger(model)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert twin.kl.root is twin
        assert torch.equal(twin.kl(), model.kl())
        twin[2].weight_rho.data += 1
        assert not torch.equal(twin.kl(), model.kl())
    assert "4 posteriors" in repr(model.kl)
    assert model.kl.root is model


def test_models_without_a_number_say_why() -> None:
    with pytest.raises(NotVariationalError, match=r"Sequential has no variational layer: call bayesify\.convert first"):
        total_kl(nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(UninitializedLayerError, match=r"layer '0' is on the meta device"):
        total_kl(nn.Sequential(variational(nn.Linear(2, 2), "flipout")).to("meta"))


def test_mixed_precision_sums_wide() -> None:
    model = nn.Sequential(variational(nn.Linear(4, 4), "lrt").half(), variational(nn.Linear(4, 4), "lrt").double())
    assert total_kl(model).dtype == torch.float64


# The prior that each setting means, as (mean, std) for a weight w₀ of a layer with this fan-in.
RULES: dict[str, tuple[Normal, Any]] = {
    "number": (Normal(0.2, Scale("constant", 0.7)), lambda w, fan: (0.2, 0.7)),
    "fan_in": (Normal(0.0, Scale("fan_in", 2.0)), lambda w, fan: (0.0, 2.0 / fan**0.5)),
    "relative": (Normal(0.0, Scale("relative", 0.5, floor=0.1)), lambda w, fan: (0.0, 0.5 * _floored(w, 0.1))),
    "pretrained": (Normal("pretrained", Scale("constant", 0.3)), lambda w, fan: (w, 0.3)),
    "pretrained, relative": (
        Normal("pretrained", Scale("relative", 0.5, floor=0.1)),
        lambda w, fan: (w, 0.5 * _floored(w, 0.1)),
    ),
    "init_std": (Normal("pretrained", Scale("init_std", 3.0)), lambda w, fan: (w, 3.0 * 0.5 * _floored(w, 0.5))),
}


def _floored(weight: Tensor, floor: float) -> Tensor:
    return weight.abs().clamp_min(floor * weight.square().mean().sqrt().item())


def _fan(plain: Any) -> int:
    """How many weights reach one interior output, counted by a layer of ones with no overlap of strides."""
    if isinstance(plain, nn.Linear):
        return int(plain.in_features)
    if isinstance(plain, nn.Bilinear):
        return int(plain.in1_features * plain.in2_features)
    counting = copy.deepcopy(plain)
    nn.init.ones_(counting.weight)
    nn.init.zeros_(counting.bias)
    shape = (1, plain.in_channels, *(9 for _ in plain.kernel_size))
    return int(counting(torch.ones(shape)).max().item())


KINDS: list[nn.Module] = [
    nn.Linear(6, 4),
    nn.Bilinear(3, 4, 5),
    nn.Conv1d(4, 6, 3),
    nn.Conv2d(4, 8, (2, 3), groups=2),
    nn.Conv3d(3, 3, 2, groups=3),
    nn.ConvTranspose1d(4, 6, 3),
    nn.ConvTranspose2d(4, 8, (2, 3), groups=2),
    nn.ConvTranspose3d(3, 6, 2, groups=3),
]


@pytest.mark.parametrize("plain", KINDS, ids=lambda plain: type(plain).__name__)
def test_fan_in_is_the_number_of_weights_that_enter_an_output(plain: nn.Module) -> None:
    assert fan_in(plain, "weight") == fan_in(plain, "bias") == _fan(plain)


def test_fan_in_of_attention_is_that_of_each_projection() -> None:
    packed, separate = nn.MultiheadAttention(8, 2), nn.MultiheadAttention(8, 2, kdim=3, vdim=5)
    assert [fan_in(packed, name) for name in ("in_proj_weight", "in_proj_bias")] == [8, 8]
    assert [fan_in(separate, f"{name}_proj_weight") for name in "qkv"] == [8, 3, 5]


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("plain", KINDS, ids=lambda plain: type(plain).__name__)
def test_priors_of_layers(plain: nn.Module, rule: str, parameterization: Any) -> None:
    """After training moved both, and for weight and bias alike: the prior stays where it was at conversion."""
    prior, meaning = RULES[rule]
    layer = variational(plain, "flipout", noisy(parameterization, prior=prior))
    expected = torch.zeros((), dtype=torch.float64)
    for name in ("weight", "bias"):
        start = getattr(layer, name).detach().double().clone()
        getattr(layer, name).data += 0.3 * torch.randn_like(getattr(layer, name))
        p = TorchNormal(*(torch.as_tensor(value, dtype=torch.float64) for value in meaning(start, _fan(plain))))
        scale, mean = layer.scale_of(name).detach().double(), getattr(layer, name).detach().double()
        q = TorchNormal(mean, Posterior(parameterization).std(mean, scale))
        expected += kl_divergence(q, p).sum()
    torch.testing.assert_close(layer.kl_divergence().double(), expected, rtol=1e-4, atol=0)


def test_the_pretrained_mean_is_saved_and_never_an_alias() -> None:
    plain = nn.Linear(6, 4)
    layer = variational(plain, "flipout", noisy(prior=Normal("pretrained", Scale("constant", 0.1))))
    assert torch.equal(layer.state_dict()["weight_prior_mean"], plain.weight)
    layer.weight.data += 1
    assert torch.equal(layer.state_dict()["weight_prior_mean"], plain.weight)
    twin = variational(nn.Linear(6, 4), "flipout", layer._settings)
    twin.load_state_dict(layer.state_dict())
    assert torch.equal(twin.kl_divergence(), layer.kl_divergence())


def test_only_what_cannot_be_computed_is_stored() -> None:
    stored = {}
    for rule, (prior, _) in RULES.items():
        layer = variational(nn.Linear(3, 2), "lrt", noisy(prior=prior, bias="deterministic"))
        stored[rule] = {name for name, _ in layer.named_buffers()}
    mean, std = {"weight_prior_mean"}, {"weight_prior_std"}
    assert stored == {
        "number": set(), "fan_in": set(), "relative": std,
        "pretrained": mean, "pretrained, relative": mean, "init_std": mean,
    }  # fmt: skip


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
@pytest.mark.parametrize("std", [1e-8, 1e-4, 1.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("prior", [Normal(0.0, Scale("constant", 1.0)), ScaleMixture()])
def test_layers_with_extreme_stds(parameterization: Any, std: float, dtype: torch.dtype, prior: Prior) -> None:
    layer = variational(nn.Linear(20, 10), "flipout", noisy(parameterization, prior=prior)).to(dtype)
    layer.set_std("weight", std)
    rtol = 1e-3 if dtype == torch.float32 else 0.1
    scale, mean = layer.weight_rho if parameterization == "additive" else layer.weight_log_alpha, layer.weight
    wide = layer._settings.posterior.std(mean.double(), scale.double())
    torch.testing.assert_close(wide, torch.full_like(wide, std), rtol=rtol, atol=0)
    kl = layer.kl_divergence()
    assert kl.isfinite()
    if std > 1 and dtype == torch.float16:
        return  # the gradient itself is beyond float16
    kl.backward()
    assert all(parameter.grad.isfinite().all() for parameter in layer.parameters() if parameter.grad is not None)


def test_log_uniform_of_a_layer_depends_on_alpha_only() -> None:
    layer = variational(nn.Linear(6, 4), "lrt", noisy("multiplicative", prior=LogUniform()))
    value = layer.kl_divergence()
    torch.testing.assert_close(value, log_uniform_kl(layer.weight_log_alpha) + log_uniform_kl(layer.bias_log_alpha))
    layer.weight.data *= 7
    assert torch.equal(layer.kl_divergence(), value)


def test_scale_mixture_of_a_layer_is_drawn_afresh() -> None:
    layer = variational(nn.Linear(6, 4), "lrt", noisy(prior=ScaleMixture()))
    assert not torch.equal(layer.kl_divergence(), layer.kl_divergence())
