"""Means that other code replaces after conversion, and layers that it takes out: the posterior follows or refuses."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.nn.utils.fusion import fuse_conv_bn_eval

import bayesify
from bayesify.errors import ShapeError, StalePosteriorError, UninitializedLayerError
from bayesify.nn.settings import Method
from tests.support import METHODS


def net() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv1d(2, 3, 3), nn.BatchNorm1d(3), nn.Flatten(), nn.Linear(18, 2)).eval()


X = torch.randn(4, 2, 8)


@pytest.mark.parametrize("method", METHODS)
def test_a_convolution_fused_with_its_norm_is_refused(method: Method) -> None:
    model = bayesify.convert(net(), method)
    model[1].running_var.fill_(100.0)
    fused: Any = fuse_conv_bn_eval(model[0], model[1])
    for use in (lambda: fused(X), fused.kl_divergence, lambda: fused.weight_std, lambda: fused.draw("weight")):
        with pytest.raises(StalePosteriorError, match=r"weight of .*Conv1d was replaced"):
            use()
    with bayesify.posterior_mean(fused):
        assert torch.allclose(fused(X), net()[0](X) / 100.0**0.5, atol=0.1)  # the mean is what was asked for
    bayesify.reset_posterior(fused)
    assert not torch.equal(fused(X), fused(X))


def test_fusing_the_plain_model_first_is_what_the_error_says() -> None:
    plain = bayesify.revert(bayesify.convert(net()))
    fused = fuse_conv_bn_eval(plain[0], plain[1])
    assert bayesify.convert(fused).kl() > 0


def test_a_replacement_of_the_same_values_keeps_the_posterior() -> None:
    model: Any = bayesify.convert(net())
    before = model.kl()
    model[0].weight = nn.Parameter(model[0].weight.detach().clone())
    assert torch.equal(model.kl(), before)
    model(X)
    assert "_replaced_means" not in vars(model[0])


def test_loading_a_state_dict_by_assignment_is_no_replacement() -> None:
    model: Any = bayesify.convert(net())
    other = {name: value + 0.5 for name, value in model.state_dict().items()}
    model.load_state_dict(other, assign=True)
    model.kl()
    model(X)


def test_a_copy_remembers_the_replacement() -> None:
    model: Any = bayesify.convert(net())
    model[0].weight = nn.Parameter(model[0].weight.detach() * 2)
    with pytest.raises(StalePosteriorError):
        copy.deepcopy(model).kl()
    assert torch.equal(bayesify.revert(model)[0].weight, model[0].weight)


def test_tying_after_conversion_is_refused() -> None:
    model: Any = bayesify.convert(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)))
    model[1].weight = model[0].weight
    with pytest.raises(StalePosteriorError):
        model(torch.ones(1, 3))
    with pytest.raises(StalePosteriorError):
        model.kl()


@pytest.mark.parametrize("method", METHODS)
def test_a_parametrization_comes_off(method: Method) -> None:
    plain = net()
    parametrizations.weight_norm(plain[0])
    model: Any = bayesify.convert(plain, method)
    before, std = model.kl(), model[0].weight_std
    parametrize.remove_parametrizations(model[0], "weight")
    assert type(model[0]) is type(bayesify.convert(net(), method)[0])
    assert torch.allclose(model.kl(), before)
    assert torch.equal(model[0].weight_std, std)
    assert not torch.equal(model(X), model(X))
    assert type(bayesify.revert(model)[0]) is nn.Conv1d


@pytest.mark.parametrize("method", METHODS)
def test_a_parametrization_of_two_comes_off(method: Method) -> None:
    plain = net()
    parametrizations.weight_norm(plain[0])
    parametrize.register_parametrization(plain[0], "bias", nn.Tanh())
    model: Any = bayesify.convert(plain, method)
    parametrize.remove_parametrizations(model[0], "weight")
    assert not torch.equal(model(X), model(X))
    reverted = bayesify.revert(model)
    assert parametrize.is_parametrized(reverted[0], "bias")
    with bayesify.posterior_mean(model):
        assert torch.equal(reverted(X), model(X))


@pytest.mark.parametrize("method", METHODS)
def test_a_parametrization_is_put_on(method: Method) -> None:
    model: Any = bayesify.convert(net(), method)
    before = model.kl()
    parametrizations.weight_norm(model[0])
    assert torch.allclose(model.kl(), before)
    assert not torch.equal(model(X), model(X))
    reverted = bayesify.revert(model)
    assert parametrize.type_before_parametrizations(reverted[0]) is nn.Conv1d
    with bayesify.posterior_mean(model):
        assert torch.equal(reverted(X), model(X))


def test_a_parametrization_that_changes_the_weight_is_refused() -> None:
    model: Any = bayesify.convert(net())
    parametrizations.spectral_norm(model[0])
    with pytest.raises(StalePosteriorError):
        model.kl()


class Symmetric(nn.Module):
    def forward(self, w: torch.Tensor) -> torch.Tensor:
        return w.triu() + w.triu(1).mT


def test_a_parametrization_that_left_other_values_is_refused() -> None:
    model: Any = bayesify.convert(nn.Sequential(nn.Linear(3, 3)))
    parametrize.register_parametrization(model[0], "weight", Symmetric())
    parametrize.remove_parametrizations(model[0], "weight")
    with pytest.raises(StalePosteriorError):
        model.kl()
    bayesify.reset_posterior(model)
    assert model.kl() > 0


def test_pruning_made_permanent_is_refused() -> None:
    plain = net()
    prune.l1_unstructured(plain[0], "weight", 0.5)
    model: Any = bayesify.convert(plain)
    prune.remove(model[0], "weight")
    with pytest.raises(StalePosteriorError, match=r"pruning .* permanent"):
        model(X)
    with pytest.raises(StalePosteriorError, match=r"pruning .* permanent"):
        model.kl()
    assert bayesify.convert(bayesify.revert(model)).kl() > 0


def test_pruning_after_conversion_takes_the_noise_of_what_it_prunes() -> None:
    model: Any = bayesify.convert(net())
    before = model[0].kl_divergence()
    prune.l1_unstructured(model[0], "weight", 0.5)
    assert ((model[0].weight_std == 0) == (model[0].weight_mask == 0)).all()
    assert model[0].kl_divergence() < before
    model(X)


def test_the_ledger_misses_layers_that_are_gone() -> None:
    model: Any = bayesify.convert(net())
    model[3] = nn.Linear(18, 2)  # as a branch merged into one, or a head resized
    for use in (model.kl, model.kl.by_layer, lambda: bayesify.kl(model), lambda: bayesify.predict(model, X, samples=2)):
        with pytest.raises(StalePosteriorError, match=r"1 of 2 variational layers .*FlipoutLinear"):
            use()
    with pytest.raises(StalePosteriorError):
        copy.deepcopy(model).kl()
    model.kl.recount()
    assert torch.equal(model.kl(), model[0].kl_divergence())


def test_layers_that_moved_are_not_gone() -> None:
    model: Any = bayesify.convert(net())
    before = model.kl()
    model[3] = nn.Sequential(nn.Dropout(), model[3])
    assert torch.equal(model.kl(), before)


def test_a_weight_resized_in_place_is_refused() -> None:
    model: Any = bayesify.convert(nn.Sequential(nn.Linear(3, 5)))
    model[0].weight.data = torch.randn(7, 3)
    with pytest.raises((ShapeError, StalePosteriorError), match="then convert"):
        model[0].weight_std  # noqa: B018


def test_a_posterior_starts_anew_around_weights_of_another_shape() -> None:
    model: Any = bayesify.convert(nn.Sequential(nn.Linear(3, 5)), {"prior": {"mean": "pretrained"}})
    model[0].weight = nn.Parameter(torch.randn(7, 3))
    model[0].bias = nn.Parameter(torch.randn(7))
    for use in (model.kl, lambda: model(torch.ones(1, 3))):
        with pytest.raises(ShapeError, match="reset_posterior"):
            use()
    bayesify.reset_posterior(model)
    assert model.kl() > 0
    assert model[0].weight_std.shape == model[0].weight_prior_mean.shape == (7, 3)
    assert not torch.equal(model(torch.ones(1, 3)), model(torch.ones(1, 3)))


def test_offloaded_weights_are_no_reason_to_start_anew() -> None:
    accelerate = pytest.importorskip("accelerate")
    model: Any = bayesify.convert(net())
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    with torch.no_grad():
        assert not torch.equal(model(X), model(X))
    with pytest.raises(UninitializedLayerError, match="offloaded by accelerate") as error:
        model.kl()
    assert "reset_posterior" not in str(error.value)
