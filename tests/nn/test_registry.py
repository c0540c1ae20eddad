"""Which classes have variants, and how users add their own."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bayesify
from bayesify.analysis.registration import register
from bayesify.errors import NothingToConvertError, PolicyError, UsageError
from bayesify.nn import Variational, registry
from bayesify.nn.registry import plain_class, plain_classes, variant
from bayesify.nn.settings import Method
from tests.support import (
    METHODS,
    assert_moments,
    covariance,
    draws,
    judge_mean,
    judge_moments,
    quiet,
    same_example,
    variational,
)


class Inherits(nn.Linear):
    """Nothing of its own."""


class Scaled(nn.Linear):
    """Calls super and changes the result."""

    def forward(self, input: Tensor) -> Tensor:
        return 3 * super().forward(input)


class ScaledTwice(Scaled):
    """Calls super, which calls super."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) - 1


class Reads(nn.Linear):
    """Reads its weight: noise would pass it by."""

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight)


class ReadsBeside(nn.Linear):
    """Calls super, and reads its weight beside it."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + self.weight.sum()


class BelowReads(Reads):
    """Calls super, but that reads the weight."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input)


class OwnConv(nn.Conv2d):
    """Replaces the helper that reads the weight."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(input, weight * 0.5, bias)


class ScaledConv(nn.ConvTranspose2d):
    """Calls super with an argument of its own."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        return 2 * super().forward(input, output_size)


class LazyScaled(nn.LazyLinear):
    """Becomes a class of the user's own."""

    cls_to_become = Scaled  # type: ignore[assignment]


@pytest.fixture(autouse=True)
def _registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_VARIANTS", dict(registry._VARIANTS))


@pytest.mark.parametrize("method", METHODS)
def test_every_variant_is_a_named_subclass(method: Method) -> None:
    for cls in plain_classes():
        found = variant(cls, method)
        assert found is not None
        assert issubclass(found, cls)
        assert issubclass(found, Variational)
        assert found.method == method
        assert plain_class(found) is cls
        assert pickle.loads(pickle.dumps(found)) is found
        assert found.__doc__


@pytest.mark.parametrize("method", METHODS)
def test_only_the_exact_class_has_a_variant(method: Method) -> None:
    """Not by name, and not by inheritance: a subclass may do anything with its weight."""
    assert variant(Inherits, method) is None
    assert variant(nn.BatchNorm1d, method) is None


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("cls", "factor"), [(Inherits, 1), (Scaled, 3), (ScaledTwice, 3)])
def test_a_registered_subclass_is_noisy(method: Method, cls: Any, factor: int) -> None:
    assert register(cls) is cls
    plain, inputs = cls(5, 3).double(), torch.randn(2, 5, dtype=torch.float64)
    layer = variational(plain, method)
    assert isinstance(layer, cls)
    assert type(layer).__name__.endswith(cls.__name__)
    with quiet(layer):
        assert torch.equal(layer(inputs), plain(inputs))
    assert_moments(plain, layer, [inputs])
    assert (covariance(plain, layer, inputs) / covariance(nn.Linear(5, 3), layer, inputs)).diagonal().allclose(
        torch.tensor(float(factor**2)).double()
    )


@pytest.mark.parametrize("method", METHODS)
def test_a_registered_transposed_convolution_passes_its_arguments_on(method: Method) -> None:
    register(ScaledConv, like=nn.ConvTranspose2d)
    plain, inputs = ScaledConv(2, 2, 2, 2).double(), torch.randn(1, 2, 2, 2, dtype=torch.float64)
    assert_moments(plain, variational(plain, method), [inputs], count=2000, output_size=[5, 4])


@pytest.mark.parametrize(
    ("cls", "like", "reason"),
    [
        (Reads, nn.Linear, "Reads.forward does not call super"),
        (ReadsBeside, nn.Linear, "reads the weight too"),
        (BelowReads, nn.Linear, "noise would bypass it"),
        (OwnConv, nn.Conv2d, "noise would bypass it"),
        (Inherits, nn.Conv2d, "Inherits is not a subclass of Conv2d"),
        (Inherits, nn.LayerNorm, "like=LayerNorm has no variational variants"),
    ],
)
def test_what_cannot_be_registered(cls: Any, like: Any, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        register(cls, like=like)
    assert variant(cls, "flipout") is None


def test_registering_twice_changes_nothing() -> None:
    register(Scaled)
    first = variant(Scaled, "lrt")
    register(Scaled)
    assert variant(Scaled, "lrt") is first


@pytest.mark.parametrize("method", METHODS)
def test_registered_layers_are_copied_and_pickled(method: Method) -> None:
    register(Scaled)
    layer, inputs = variational(Scaled(5, 3), method), torch.randn(2, 5)
    outputs = []
    for twin in (layer, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        torch.manual_seed(2)
        outputs.append(twin(inputs))
        assert type(twin) is type(layer)
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])


def test_a_class_that_is_not_registered_here_says_so() -> None:
    with pytest.raises(AttributeError, match="not imported or registered in this process"):
        _ = getattr(bayesify.nn, "Flipout/mypkg-layers/Nobody")


@pytest.mark.parametrize("method", METHODS)
def test_a_registered_lazy_class_stays_noisy_when_it_becomes_its_own_class(method: Method) -> None:
    register(Scaled)
    register(LazyScaled, like=nn.LazyLinear)
    layer = variational(LazyScaled(3), method, uneven=False)
    inputs = torch.randn(2, 5)
    layer(inputs)
    assert isinstance(layer, Scaled)
    assert isinstance(layer, Variational)
    assert not torch.equal(layer(inputs), layer(inputs))


def test_a_lazy_class_is_registered_after_the_one_that_it_becomes() -> None:
    with pytest.raises(UsageError, match="LazyScaled becomes Scaled at its first batch: register that class first"):
        register(LazyScaled, like=nn.LazyLinear)
    assert variant(LazyScaled, "flipout") is None


def test_two_calls_of_super_are_two_draws() -> None:
    class Doubled(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input) + super().forward(input)

    register(Doubled)
    plain, inputs = Doubled(4, 2).double(), torch.randn(2, 4, dtype=torch.float64)
    layer = variational(plain, "flipout")
    once = covariance(nn.Linear(4, 2), layer, inputs) * same_example(plain(inputs))
    judge_moments(draws(layer, 4000, inputs), plain(inputs).detach(), 2 * once)


_NUMBERS = {0: 0, 2: 2}


class Experts(nn.Module):
    """Its look-up by data does not trace."""

    def __init__(self) -> None:
        super().__init__()
        self.bank = nn.Parameter(torch.randn(3, 4, 4))
        self.other = nn.Parameter(torch.zeros(4, 4))

    def forward(self, x: Tensor, of: Tensor) -> Tensor:
        return torch.cat([F.linear(x[[at]], self.bank[_NUMBERS[int(each)]]) for at, each in enumerate(of)])


@pytest.mark.parametrize("method", METHODS)
def test_a_class_that_does_not_trace_is_registered_by_what_it_multiplies_by(method: Method, monkeypatch: Any) -> None:
    with pytest.raises(NothingToConvertError, match=r"its forward does not trace.*bank"):
        bayesify.convert(Experts(), method)
    monkeypatch.setattr(registry, "_MULTIPLYING", {})
    assert register(Experts, weights=["bank"]) is Experts
    plain, of = Experts().double(), torch.tensor([2, 0])
    layer: Any = bayesify.convert(plain, method)
    assert layer.means() == ["bank"]
    bayesify.set_posterior_std(layer, 0.5)
    x = torch.randn(2, 4).double()
    spread = draws(layer, 4000, x, of) - plain(x, of).detach()
    judge_mean("variance", spread.square() / (0.25 * x.square().sum(1, keepdim=True)), 1.0)
    judge_mean("other example", spread[:, 0] * spread[:, 1], 0.0)


class ByKeyword(nn.Module):
    """Its look-up by a size does not trace."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(3, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = x[: _NUMBERS[x.shape[0]]].to(self.matrix)
        return x @ torch.transpose(input=self.matrix, dim0=0, dim1=1)


def test_views_by_keyword_and_data_made_alike(monkeypatch: Any) -> None:
    monkeypatch.setattr(registry, "_MULTIPLYING", {})
    register(ByKeyword, weights="matrix")
    plain, x = ByKeyword().double(), torch.randn(2, 4).double()
    layer: Any = bayesify.convert(plain)
    bayesify.set_posterior_std(layer, 0.5)
    spread = draws(layer, 4000, x) - plain(x).detach()
    judge_mean("variance", spread.square() / (0.25 * x.square().sum(1, keepdim=True)), 1.0)


@pytest.mark.parametrize("method", METHODS)
def test_layers_of_other_libraries(method: Method, vision: Any) -> None:
    """Two of timm's subclasses of torch's layers read the weight, and one of transformers' calls super."""
    layers = pytest.importorskip("timm.layers")
    gemma = pytest.importorskip("transformers.models.gemma3.modeling_gemma3")
    cases = (layers.Conv2dSame(3, 4, 3, stride=2), torch.randn(2, 3, 5, 5)), (layers.Linear(3, 4), torch.randn(2, 3))
    for plain, x in cases:
        layer = bayesify.convert(plain, method)
        with bayesify.posterior_mean(layer):
            assert torch.equal(layer(x), plain(x))
        assert not torch.equal(layer(x), layer(x))
    cls = gemma.Gemma3TextScaledWordEmbedding
    table = nn.Sequential(cls(7, 4, 0, embed_scale=2.0), nn.Linear(4, 2))
    policy = {"rules": [{"targets": ["0"]}], "method": method}
    with pytest.raises(PolicyError, match=r"bayesify\.register\(Gemma3TextScaledWordEmbedding, like=nn\.Embedding\)"):
        bayesify.convert(table, policy)
    register(cls, like=nn.Embedding)
    model, ids = bayesify.convert(table, policy), torch.tensor([[1, 2, 0]])
    with bayesify.posterior_mean(model):
        assert torch.equal(model(ids), table(ids))
    assert not torch.equal(model[0](ids), model[0](ids))
    assert torch.equal(model[0](ids)[:, 2], table[0](ids)[:, 2])
    assert pickle.loads(pickle.dumps(model))[0].__class__ is model[0].__class__
