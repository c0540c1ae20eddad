"""Traps: what writes over posteriors after conversion: init loops, copies, plain state_dicts, weight decay."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bayesify
from bayesify.errors import StalePosteriorError
from tests.traps.common import METHODS, PRETRAINED

X = torch.linspace(-1, 1, 48).view(6, 8)
Y = torch.tensor([0, 1, 2, 0, 1, 2])
INITS: dict[str, Callable[[Tensor], Any]] = {
    "xavier": nn.init.xavier_uniform_,
    "kaiming": nn.init.kaiming_normal_,
    "orthogonal": nn.init.orthogonal_,
    "normal": lambda p: nn.init.normal_(p, 0, 0.02),
    "zeros": nn.init.zeros_,
    "data": lambda p: p.data.uniform_(-0.1, 0.1),
}
POLICIES: dict[str, Any] = {
    "default": "flipout",
    "lrt": "lrt",
    "multiplicative": {"posterior": {"parameterization": "multiplicative"}},
    "constant": {"posterior": {"init_std": 0.01}},
    "pretrained": PRETRAINED,
}


def net() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8, bias=False), nn.Tanh(), nn.Linear(8, 3))


@contextmanager
def silence() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
@pytest.mark.parametrize("init", INITS.values(), ids=INITS)
def test_an_init_loop_over_all_parameters_is_told(init: Callable[[Tensor], Any], policy: Any) -> None:
    uses: list[Callable[[Any], Any]] = [lambda model: model(X), lambda model: model.kl()]
    for use in uses:
        model = bayesify.convert(net(), policy)
        for parameter in model.parameters():
            if parameter.dim() > 1:
                init(parameter)
        with pytest.warns(UserWarning, match=r"the scales of '0' and 2 more layers are distributed as its weights"):
            use(model)
        bayesify.reset_posterior(model)
        with silence():
            model(X)
            model.kl()


def test_a_loop_in_training_is_told_at_one_of_the_next_uses() -> None:
    model = bayesify.convert(net())
    train(model, 3)
    nn.utils.vector_to_parameters(0.1 * torch.randn(sum(p.numel() for p in model.parameters())), model.parameters())
    with pytest.warns(UserWarning, match="are distributed as its weights"):
        train(model, 5)


@pytest.mark.parametrize("policy", ["flipout", "lrt", PRETRAINED], ids=str)
def test_means_that_are_written_in_place_are_told(policy: Any) -> None:
    def init(module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0, 2.0)

    model = bayesify.convert(net(), policy)
    model.apply(init)
    with pytest.warns(UserWarning, match="the weights of '0' and 2 more layers have changed and their stds have not"):
        model(X)


@METHODS
def test_what_is_right_says_nothing(method: str) -> None:
    for policy in (method, {"method": method, "prior": {"mean": "pretrained"}}):
        with silence():
            model = train(bayesify.convert(net(), policy), 9)
            for each in (copy.deepcopy(model), copy.deepcopy(model).double()):
                each(X.to(each[0].weight.dtype))
                each.kl()
            other = bayesify.convert(net(), policy)
            other.load_state_dict(model.state_dict())
            other(X)
            for module in other.modules():
                if hasattr(module, "reset_parameters"):
                    module.reset_parameters()
            other(X)
            vector = nn.utils.parameters_to_vector(model.parameters())
            nn.utils.vector_to_parameters(vector.clone(), model.parameters())
            train(model, 4)
            fresh = bayesify.convert(net(), policy)
            bayesify.load_weights(fresh, {name: 3 * value for name, value in net().state_dict().items()})
            fresh(X)


def test_posteriors_at_their_prior_say_nothing() -> None:
    """Weights near 0 and scales of one size, as the KL alone leaves them."""
    model = bayesify.convert(net())
    for _, layer in bayesify.variational_layers(model):
        layer.weight.data.mul_(0.01)
    bayesify.set_posterior_std(model, 1.0)
    for _, layer in bayesify.variational_layers(model):
        layer.scale_of("weight").data.add_(0.01 * torch.randn_like(layer.weight))  # type: ignore[union-attr]
    with silence():
        model(X)
        model.kl()


def test_a_plain_state_dict_leaves_no_posterior_for_other_means() -> None:
    model: Any = bayesify.convert(net(), PRETRAINED)
    model(X)
    full = model.state_dict()
    plain = {name: 3 * value for name, value in net().state_dict().items()}
    model.load_state_dict(net().state_dict(), strict=False)  # the same values
    model(X)
    model.load_state_dict(plain, strict=False)
    for use in (lambda: model(X), model.kl):
        with pytest.raises(StalePosteriorError, match="a state_dict without its scale was loaded"):
            use()
    scales = {name: value for name, value in full.items() if name not in plain}
    model.load_state_dict(scales, strict=False)  # they come in a second file
    model(X)
    plain = {name: -value for name, value in plain.items()}
    model.load_state_dict(plain, strict=False)
    with pytest.raises(StalePosteriorError):
        model(X)
    bayesify.reset_posterior(model)
    model(X)
    assert torch.equal(model[0].weight_prior_mean, plain["0.weight"])


def test_weight_decay_on_scales_is_told() -> None:
    model = bayesify.convert(net())
    with pytest.warns(UserWarning, match="weight decay pulls the posterior's scales"):
        bayesify.attach_kl(torch.optim.AdamW(model.parameters()), model, 6)
    with silence():
        bayesify.attach_kl(torch.optim.AdamW(bayesify.param_groups(model, weight_decay=0.1)), model, 6)
        bayesify.attach_kl(torch.optim.Adam(model.parameters()), model, 6)


def train(model: Any, steps: int) -> Any:
    optimizer = torch.optim.Adam(bayesify.param_groups(model, lr=1e-2))
    for _ in range(steps):
        optimizer.zero_grad()
        (F.cross_entropy(model(X), Y) + model.kl() / 1000).backward()
        optimizer.step()
    return model
