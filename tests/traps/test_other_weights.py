"""Traps: weights that are computed, packed, resized or already named, and layer classes of the user's own."""

from __future__ import annotations

import pickle
import warnings
from importlib.util import find_spec
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import bayesify
from tests.traps.common import METHODS, differs, reasons


@pytest.mark.parametrize(
    "wrap", [parametrizations.weight_norm, parametrizations.spectral_norm, parametrizations.orthogonal]
)
def test_07_parametrizations(wrap: Any) -> None:
    plain, x = nn.Sequential(wrap(nn.Linear(3, 3)), nn.Linear(3, 3)).eval(), torch.ones(2, 3)
    model = bayesify.convert(plain)
    with bayesify.posterior_mean(model):
        assert torch.equal(model(x), plain(x))
    assert differs(model[0], x)
    assert type(bayesify.revert(model)[0]) is type(plain[0])


@pytest.mark.parametrize("change", ["weight_norm", "spectral_norm", "prune"])
def test_08_weights_that_old_hooks_compute(change: str) -> None:
    model, x = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)).eval(), torch.ones(2, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        prune.l1_unstructured(model[0], "weight", 0.5) if change == "prune" else getattr(nn.utils, change)(model[0])
    before = model(x)
    bayesify.convert(model, inplace=True)
    with bayesify.posterior_mean(model):
        assert torch.equal(model(x), before)
    assert differs(model[0], x)


class Scaled(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * F.linear(input, self.weight, self.bias)


class Inherits(nn.Linear):
    pass


def test_09_subclasses() -> None:
    model = nn.Sequential(Scaled(2, 2), Inherits(2, 2), nn.Linear(2, 2))
    converted = bayesify.convert(model)
    for at, cls in enumerate((Scaled, Inherits)):
        assert isinstance(converted[at], cls)
        assert differs(converted[at], torch.ones(1, 2))
        assert type(pickle.loads(pickle.dumps(converted[at]))) is type(converted[at])


def test_10_the_transposed_linear_of_transformers(request: pytest.FixtureRequest) -> None:
    if find_spec("torchvision"):
        request.getfixturevalue("vision")
    plain, x = pytest.importorskip("transformers.pytorch_utils").Conv1D(2, 3), torch.ones(2, 3)
    model = bayesify.convert(plain)
    with bayesify.posterior_mean(model):
        assert torch.equal(model(x), plain(x))
    assert differs(model, x)


def test_11_quantized_weights() -> None:
    class Packed(Tensor):
        pass

    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0]._parameters["weight"] = torch.zeros(2, 2).as_subclass(Packed)  # type: ignore[assignment]
    assert "Packed" in reasons(model)["0"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dynamic = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(2, 2)), {nn.Linear})
    assert "quantized" in reasons(nn.Sequential(dynamic, nn.Linear(2, 2)))["0.0"]


def test_12_adapters() -> None:
    class Adapter(nn.Module):
        adapter_layer_names = ("lora_A",)

        def __init__(self) -> None:
            super().__init__()
            self.base_layer, self.lora_A = nn.Linear(2, 2), nn.ModuleDict({"default": nn.Linear(2, 2)})

        def forward(self, x: Tensor) -> Tensor:
            return self.base_layer(x) + self.lora_A["default"](x)  # type: ignore[no-any-return]

    model = nn.Sequential(Adapter(), nn.Linear(2, 2))
    assert reasons(model).keys() == {"0.base_layer"}
    assert "merge_and_unload" in reasons(model)["0.base_layer"]
    assert [name for name, _ in bayesify.variational_layers(bayesify.convert(model))] == ["0.lora_A.default", "1"]


def test_32_names_that_are_taken() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].register_buffer("weight_rho", torch.zeros(1))
    assert "'weight_rho' already" in reasons(model)["0"]
    assert torch.equal(bayesify.convert(model)[0].weight_rho, torch.zeros(1))  # type: ignore[arg-type]


@METHODS
def test_33_a_weight_resized_after_conversion(method: str) -> None:
    layer = bayesify.convert(nn.Linear(2, 3), method)
    layer.weight = nn.Parameter(torch.zeros(5, 2))
    layer.bias = nn.Parameter(torch.zeros(5))
    with pytest.raises(RuntimeError, match="resize first, then convert"):
        layer(torch.ones(1, 2))


@METHODS
def test_34_output_size_and_every_other_option(method: str) -> None:
    plain = nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, groups=2, dilation=2)
    layer, x = bayesify.convert(plain, method), torch.randn(2, 4, 5, 5)
    with bayesify.posterior_mean(layer):
        assert torch.equal(layer(x, output_size=[12, 12]), plain(x, output_size=[12, 12]))
    assert layer(x, [12, 12]).shape == (2, 6, 12, 12)
    padded = nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular")
    layer = bayesify.convert(padded, method)
    bayesify.set_posterior_std(layer, 1e-8)
    torch.testing.assert_close(layer(x), padded(x))
