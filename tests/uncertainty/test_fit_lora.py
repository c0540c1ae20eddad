"""`fit_lora` keeps what adapters compute, and gives their outputs noise of one size in every direction."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bayesify
from bayesify.errors import UsageError
from tests.support import judge_mean


class Adapted(nn.Module):
    """A Linear layer with an adapter, under peft's names."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(6, 4).requires_grad_(False)
        self.lora_A = nn.ModuleDict({"default": nn.Linear(6, 3, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(3, 4, bias=False)})

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base(x) + self.lora_B["default"](self.lora_A["default"](x))
        return y


def data(model: nn.Module) -> Any:
    x = torch.randn(400, 6)
    with torch.no_grad():
        return [(x, torch.distributions.Categorical(logits=model(x)).sample())]


def test_the_function_stays_and_the_noise_has_one_size_in_every_direction() -> None:
    plain = Adapted()
    model: Any = bayesify.convert(plain, "lora").eval()
    found = bayesify.fit_lora(model, data(plain), task="classification")
    x = torch.randn(300, 6)
    with torch.no_grad(), bayesify.posterior_mean(model):
        torch.testing.assert_close(model(x), plain(x), rtol=1e-6, atol=1e-6)

    x = torch.nn.functional.normalize(torch.randn(1, 6))
    directions = torch.linalg.svd(plain.lora_B["default"].weight.detach()).U[:, :3]  # type: ignore[arg-type]
    with torch.no_grad():
        along = torch.stack([(model(x) - plain(x)) @ directions for _ in range(4000)])
    judge_mean("variance", along.square() / found.sigma**2, 1.0)


def test_sigma_is_the_largest_within_the_tolerance() -> None:
    plain = Adapted()
    model = bayesify.convert(plain, "lora").eval()
    batches = data(plain)
    sigmas = []
    for tolerance in (0.003, 0.03):
        found = bayesify.fit_lora(copy.deepcopy(model), batches, task="classification", tolerance=tolerance)
        assert found.nll_before < found.nll <= found.nll_before * (1 + tolerance)
        assert found.nll == pytest.approx(found.nll_before * (1 + tolerance), rel=tolerance / 10)
        assert found.adapters == 1
        sigmas.append(found.sigma)
    assert sigmas[0] < sigmas[1]


def test_adapters_of_peft(vision: Any) -> None:
    peft = pytest.importorskip("peft")
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    plain = peft.get_peft_model(net, peft.LoraConfig(r=2, target_modules=["0", "2"])).eval()
    for name, parameter in plain.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter)
    model = bayesify.convert(plain, "lora")
    x = torch.randn(100, 6)
    found = bayesify.fit_lora(model, [((x,), torch.randint(3, (100,)))], task="classification")
    assert found.adapters == 2
    with torch.no_grad(), bayesify.posterior_mean(model):
        torch.testing.assert_close(model(x), plain(x), rtol=1e-5, atol=1e-5)


def test_what_has_no_trained_adapter_is_refused() -> None:
    plain = Adapted()
    with pytest.raises(UsageError, match="no variational lora_A"):
        bayesify.fit_lora(bayesify.convert(nn.Linear(6, 4)), data(plain), task="classification")
    nn.init.zeros_(plain.lora_B["default"].weight)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="is zero: train the adapters first"):
        bayesify.fit_lora(bayesify.convert(plain, "lora"), data(plain), task="classification")
