"""Lazy layers: converted or built before they have seen data, and afterwards as if they had been converted then."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.parameter import is_lazy

import bayesify
import bayesify.nn as variational_nn
from bayesify.distributions.posterior import Scale
from bayesify.distributions.prior import Normal
from bayesify.errors import UninitializedLayerError
from bayesify.nn import Settings
from bayesify.nn.kl import total_kl
from bayesify.nn.registry import lazy_twin, variant
from bayesify.nn.settings import Method
from tests.support import METHODS, PARAMETERIZATIONS, assert_moments, noisy, quiet, variational

LAZY: dict[str, tuple[Any, Any, tuple[Any, ...], tuple[int, ...]]] = {
    "Linear": (nn.LazyLinear, nn.Linear, (3,), (2, 5)),
    "Conv1d": (nn.LazyConv1d, nn.Conv1d, (4, 3, 2), (2, 3, 6)),
    "Conv2d": (nn.LazyConv2d, nn.Conv2d, (4, 3, 1, 1), (2, 3, 4, 4)),
    "Conv3d": (nn.LazyConv3d, nn.Conv3d, (2, 2), (2, 3, 2, 3, 2)),
    "ConvTranspose1d": (nn.LazyConvTranspose1d, nn.ConvTranspose1d, (4, 3, 2), (2, 3, 4)),
    "ConvTranspose2d": (nn.LazyConvTranspose2d, nn.ConvTranspose2d, (4, 2, 2), (2, 3, 3, 2)),
    "ConvTranspose3d": (nn.LazyConvTranspose3d, nn.ConvTranspose3d, (2, 2), (2, 3, 2, 2, 1)),
}
SETTINGS = {
    "plain": noisy(bias="deterministic"),
    "variational bias, multiplicative": noisy("multiplicative"),
    "pretrained mean": noisy(prior=Normal("pretrained", Scale("init_std", 3.0))),
    "relative std": noisy(prior=Normal(0.0, Scale("relative", 2.0)), bias="deterministic"),
}

every_kind = pytest.mark.parametrize("kind", LAZY)
every_method = pytest.mark.parametrize("method", METHODS)


def _converted(kind: str, method: Method, settings: Settings) -> Any:
    lazy, _, arguments, _ = LAZY[kind]
    return variational(lazy(*arguments), method, settings, uneven=False)


@every_kind
@every_method
@pytest.mark.parametrize("settings", SETTINGS)
def test_as_if_converted_after_the_first_batch(kind: str, method: Method, settings: str) -> None:
    lazy, concrete, arguments, shape = LAZY[kind]
    inputs = torch.randn(shape)
    layer = _converted(kind, method, SETTINGS[settings])
    assert all(is_lazy(layer.scale_of(name)) for name in layer.means())
    torch.manual_seed(3)
    layer(inputs)
    plain = lazy(*arguments)
    torch.manual_seed(3)
    plain(inputs)
    afterwards = variational(plain, method, SETTINGS[settings], uneven=False)
    assert type(layer) is type(afterwards) is variant(concrete, method)
    assert layer.state_dict().keys() == afterwards.state_dict().keys()
    assert all(torch.equal(value, layer.state_dict()[name]) for name, value in afterwards.state_dict().items())
    assert torch.equal(layer.kl_divergence(), afterwards.kl_divergence())
    with quiet(layer):
        assert torch.equal(layer(inputs), plain(inputs))
    assert {name for name, _ in layer.named_parameters()} == {name for name, _ in afterwards.named_parameters()}


@every_kind
@every_method
def test_stand_alone_and_moments(kind: str, method: Method) -> None:
    _, concrete, arguments, shape = LAZY[kind]
    prefix = {"flipout": "LazyFlipout", "lrt": "LazyLRT"}[method]
    layer = getattr(variational_nn, f"{prefix}{kind}")(*arguments, settings=noisy())
    inputs = torch.randn(shape, dtype=torch.float64)
    output, kl = layer.double()(inputs, return_kl=True)
    assert type(layer).__name__ == prefix.removeprefix("Lazy") + kind
    assert kl.isfinite()
    channels = shape[-1] if kind == "Linear" else shape[1]
    plain = concrete(channels, *arguments).double()
    plain.load_state_dict({name: getattr(layer, name) for name in ("weight", "bias")})
    assert output.shape == plain(inputs).shape
    assert_moments(plain, layer, [inputs], count=2000)


@every_method
def test_kl_before_the_first_batch_names_the_layer(method: Method) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Sequential(_converted("Linear", method, noisy())))
    with pytest.raises(UninitializedLayerError, match=r"layer '1\.0' has not seen data yet.*run one batch first"):
        total_kl(model)
    model(torch.randn(2, 5))
    assert total_kl(model).isfinite()


@every_kind
@every_method
def test_a_plain_checkpoint_loaded_before_the_first_batch_stays(kind: str, method: Method) -> None:
    _, concrete, arguments, shape = LAZY[kind]
    channels = shape[-1] if kind == "Linear" else shape[1]
    source = concrete(channels, *arguments)
    layer = _converted(kind, method, noisy(prior=Normal("pretrained")))
    missing = layer.load_state_dict(source.state_dict(), strict=False).missing_keys
    assert {"weight_rho", "weight_prior_mean"} <= set(missing)
    layer(torch.randn(shape))
    assert torch.equal(layer.weight, source.weight)
    assert torch.equal(layer.bias, source.bias)
    assert torch.equal(layer.weight_prior_mean, source.weight)
    converted = variational(source, method, noisy(prior=Normal("pretrained")), uneven=False)
    assert torch.equal(layer.weight_rho, converted.weight_rho)


@every_kind
@every_method
def test_a_converted_checkpoint_loads_into_a_lazy_layer(kind: str, method: Method) -> None:
    _, concrete, arguments, shape = LAZY[kind]
    channels = shape[-1] if kind == "Linear" else shape[1]
    settings = noisy(prior=Normal("pretrained"))
    source = variational(concrete(channels, *arguments), method, settings)
    layer = _converted(kind, method, settings)
    layer.load_state_dict(source.state_dict())
    layer(torch.randn(shape))
    assert type(layer) is type(source)
    assert all(torch.equal(value, layer.state_dict()[name]) for name, value in source.state_dict().items())


@every_kind
@every_method
@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_copies_of_a_lazy_layer_are_independent(kind: str, method: Method, settings: str, copied: Any) -> None:
    layer = _converted(kind, method, SETTINGS[settings])
    twin = copied(layer)
    inputs = torch.randn(LAZY[kind][3])
    outputs = []
    for module in (layer, twin):
        torch.manual_seed(5)
        outputs.append(module(inputs))
    assert torch.equal(*outputs)
    assert type(layer) is type(twin)
    layer.scale_of("weight").data += 1
    assert not torch.equal(layer.kl_divergence(), twin.kl_divergence())


@every_method
def test_a_double_lazy_layer_stays_double_through_deepcopy(method: Method) -> None:
    layer = copy.deepcopy(_converted("Linear", method, noisy(prior=Normal("pretrained"))).double())
    layer(torch.randn(2, 5, dtype=torch.float64))
    assert {parameter.dtype for parameter in (*layer.parameters(), *layer.buffers())} == {torch.float64}


@every_method
def test_dtype_moves_before_the_first_batch(method: Method) -> None:
    layer = _converted("Conv2d", method, noisy(prior=Normal("pretrained"))).double()
    assert layer(torch.randn(2, 3, 4, 4, dtype=torch.float64)).dtype == torch.float64
    assert {parameter.dtype for parameter in (*layer.parameters(), *layer.buffers())} == {torch.float64}


@every_kind
@every_method
def test_an_optimizer_made_before_the_first_batch_trains_the_scales(kind: str, method: Method) -> None:
    layer = _converted(kind, method, noisy())
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    layer(torch.randn(LAZY[kind][3])).square().sum().backward()
    before = layer.scale_of("weight").detach().clone()
    optimizer.step()
    assert not torch.equal(layer.scale_of("weight"), before)


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
def test_through_the_front_door(parameterization: str) -> None:
    model = nn.Sequential(nn.LazyConv2d(4, 3), nn.Flatten(), nn.LazyLinear(3))
    converted: Any = bayesify.convert(model, {"posterior": {"parameterization": parameterization}})
    with pytest.raises(UninitializedLayerError, match="layer '0'"):
        converted.kl()
    converted(torch.randn(2, 1, 6, 6))
    assert [type(layer).__name__ for layer in converted] == ["FlipoutConv2d", "Flatten", "FlipoutLinear"]
    assert converted.kl().isfinite()


def test_every_lazy_class_of_torch_has_variants() -> None:
    plain = {concrete: lazy for lazy, concrete, *_ in LAZY.values()}
    assert {cls: lazy_twin(cls) for cls in plain} == plain
    assert lazy_twin(nn.Bilinear) is None


