"""What always holds, on random networks under random policies."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import torch
from hypothesis import HealthCheck, Phase, given, settings
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence
from torch.nn.parameter import is_lazy

import bayesify
from bayesify.distributions.prior import LogUniform, ScaleMixture
from bayesify.nn.registry import plain_classes
from tests.nets import snapshot
from tests.random_nets import CLASSES, WIDTH, nets, policies

repeatable = settings(
    derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck),
    phases=[Phase.generate, Phase.shrink],
)  # fmt: skip
checked = settings(repeatable, max_examples=40)


def data() -> Tensor:
    return torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(1))


def cloned(model: nn.Module) -> Any:
    """A copy by pickle: torch cannot deep-copy LazyBatchNorm."""
    return pickle.loads(pickle.dumps(model))


def forward(model: nn.Module, seed: int = 7) -> Tensor:
    torch.manual_seed(seed)
    return model(data())  # type: ignore[no-any-return]


def converted(net: nn.Module, policy: Any) -> Any:
    """The converted net, and one batch through it, so that lazy layers have shapes."""
    model = bayesify.convert(net, policy)
    with bayesify.posterior_mean(model):
        forward(model)
    return model


def shaken(model: Any) -> Any:
    """Parameters moved off their start, as training does."""
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


@checked
@given(nets(), policies())
def test_the_function_is_preserved_and_noise_is_torch_s(net: nn.Module, policy: Any) -> None:
    model, plain = bayesify.convert(net, policy), cloned(net)
    for mode in (True, False):
        model.train(mode), plain.train(mode)
        with bayesify.posterior_mean(model):
            assert torch.equal(forward(model), forward(plain))
    assert torch.equal(forward(model), forward(model))
    assert not torch.equal(forward(model, 7), forward(model, 8))


@checked
@given(nets(), policies())
def test_names_and_objects_stay_and_each_weight_has_one_posterior(net: nn.Module, policy: Any) -> None:
    before = {name: id(value) for name, value in net.named_parameters(remove_duplicate=False)}
    modules = [(name, id(module)) for name, module in net.named_modules(remove_duplicate=False)]
    model: Any = bayesify.convert(net, policy, inplace=True)
    after = dict(model.named_parameters(remove_duplicate=False))
    assert [(name, id(module)) for name, module in model.named_modules(remove_duplicate=False)] == modules
    assert before.items() <= {name: id(value) for name, value in after.items()}.items()
    scale_of: dict[int, int] = {}
    for name, value in after.items():
        mean, _, suffix = name.rpartition("_rho") if name.endswith("_rho") else name.rpartition("_log_alpha")
        if mean and not suffix:
            assert scale_of.setdefault(id(after[mean]), id(value)) == id(value)
    assert len(set(scale_of.values())) == len(scale_of) > 0
    forward(model)
    assert model.kl.by_layer().keys() <= {name for name, _ in bayesify.variational_layers(model)}


@checked
@given(nets(), policies())
def test_every_scale_gets_gradient_from_the_output_alone(net: nn.Module, policy: Any) -> None:
    model = shaken(converted(net, policy)).eval()
    output = forward(model)
    (output * torch.randn_like(output)).sum().backward()
    for name, layer in bayesify.variational_layers(model):
        for mean in layer.means():
            scale = layer.scale_of(mean)
            assert scale is not None
            if scale.requires_grad:
                assert scale.grad is not None, name
                assert scale.grad.isfinite().all(), name
                assert scale.grad.abs().sum() > 0, name


def expected_kl(model: Any, start: Any) -> Tensor:
    """The sum over unique means by torch.distributions, the prior worked out from the model as it was converted."""
    terms: dict[int, Tensor] = {}
    for name, layer in bayesify.variational_layers(model):
        first, prior = start.get_submodule(name), layer._settings.prior
        for mean in layer.means():
            q = Normal(getattr(layer, mean).double(), layer.std_of(mean).double())
            center = (
                getattr(first, mean)
                if prior.mean == "pretrained"
                else torch.full_like(getattr(first, mean), prior.mean)
            )
            p = Normal(center.double(), prior_std(first, mean).double())
            terms.setdefault(id(getattr(layer, mean)), kl_divergence(q, p).sum())
    return torch.stack(list(terms.values())).sum()


def prior_std(layer: Any, mean: str) -> Tensor:
    weight, rule = getattr(layer, mean).detach(), layer._settings.prior.std
    if rule.kind == "constant":
        return torch.full_like(weight, rule.value)
    if rule.kind == "fan_in":
        return torch.full_like(weight, rule.value / inputs_of(layer, mean) ** 0.5)
    floor = rule.floor * weight.square().mean().sqrt()
    return rule.value * weight.abs().clamp_min(floor)  # type: ignore[no-any-return]


def inputs_of(layer: Any, mean: str) -> int:
    """The fan-in, by what the layer was made with."""
    if isinstance(layer, nn.Embedding | nn.EmbeddingBag):
        return 1
    if isinstance(layer, nn.MultiheadAttention):
        return int({"k_proj_weight": layer.kdim, "v_proj_weight": layer.vdim}.get(mean, layer.embed_dim))
    if isinstance(layer, nn.RNNCellBase):
        return layer.input_size if "_ih" in mean else layer.hidden_size
    if isinstance(layer, nn.RNNBase):
        width = getattr(layer, "proj_size", 0) or layer.hidden_size
        first = mean.startswith(("weight_ih_l0", "bias_ih_l0"))
        below = layer.input_size if first else width * (1 + layer.bidirectional)
        return layer.hidden_size if "_hr" in mean else below if "_ih" in mean else width
    if isinstance(layer, nn.Bilinear):
        return layer.in1_features * layer.in2_features
    return layer.in_features if isinstance(layer, nn.Linear) else _of_kernel(layer)


def _of_kernel(conv: Any) -> int:
    return conv.in_channels // conv.groups * conv.kernel_size[0]  # type: ignore[no-any-return]


@checked
@given(nets(), policies())
def test_the_kl_is_exact_at_any_time_and_follows_what_is_reached(net: nn.Module, policy: Any) -> None:
    start = converted(net, policy)
    model = shaken(copy.deepcopy(start))
    families = {type(layer._settings.prior) for _, layer in bayesify.variational_layers(model)}
    torch.manual_seed(2)
    total = model.kl()
    assert total.isfinite()
    assert total.shape == ()
    total.backward()
    if ScaleMixture not in families:
        assert torch.equal(model.kl(), total)
        forward(model).sum().backward()
        assert torch.equal(model.kl(), total)
        model.kl.reset()
        assert model.kl(reached=True) == 0
        forward(model), forward(model)
        assert torch.equal(model.kl(reached=True), total)
        torch.testing.assert_close(sum(model.kl.by_layer().values()), total)
    if not families & {ScaleMixture, LogUniform}:
        torch.testing.assert_close(total.double(), expected_kl(model, start), rtol=1e-4, atol=1e-5)


@checked
@given(nets(), policies())
def test_the_plan_is_what_conversion_does(net: nn.Module, policy: Any) -> None:
    before = snapshot(net)
    made = bayesify.plan(net, policy)
    assert snapshot(net) == before
    model = bayesify.convert(net, policy)
    assert snapshot(net) == before
    assert {row.name: row.becomes for row in made.converting()} == {
        name: type(layer).__name__ for name, layer in bayesify.variational_layers(model)
    }
    if not any(map(is_lazy, [*net.parameters(), *net.buffers()])):
        assert made.totals["parameters_after"] == sum(parameter.numel() for parameter in model.parameters())
    assert sum(row.parameters_after for row in made.rows) == made.totals["parameters_after"]


@checked
@given(nets(), policies())
def test_copies_and_files_hold_the_same_model(net: nn.Module, policy: Any) -> None:
    cloned(bayesify.convert(net, policy))
    model = shaken(converted(net, policy)).eval()
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    classes = {type(module) for module in bayesify.revert(model).modules()}
    with torch.serialization.safe_globals([*classes, *CLASSES]):
        loaded = torch.load(file, weights_only=True)
    fresh = converted(cloned(net), policy).eval()
    fresh.load_state_dict(model.state_dict())
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), loaded, fresh):
        assert torch.equal(forward(other), forward(model))
        assert other.kl.root is other
        torch.manual_seed(5)
        total = other.kl()
        torch.manual_seed(5)
        assert torch.equal(total, model.kl())
        assert len(list(other.parameters())) == len(list(model.parameters()))


@checked
@given(nets(), policies())
def test_revert_restores(net: nn.Module, policy: Any) -> None:
    before = snapshot(net)
    bayesify.convert(net, policy, inplace=True)
    bayesify.revert(net, inplace=True)
    assert snapshot(net)[0] == before[0]


def test_the_nets_hold_what_they_are_meant_to() -> None:
    """Hypothesis would fall silent if a strategy stopped drawing something."""
    seen: set[type] = set()

    @settings(repeatable, max_examples=200)
    @given(nets())
    def look(net: nn.Module) -> None:
        seen.update(type(module) for module in net.modules())

    look()
    of_torch = {cls for cls in plain_classes() if cls.__module__.startswith("torch.")}  # others may be registered
    assert seen >= {*CLASSES, *of_torch}
