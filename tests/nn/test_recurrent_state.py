"""What recurrent layers hold: KL terms, copies, torch's flat list of weights, number types."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bayesify
from bayesify.nn import FlipoutLSTM
from bayesify.nn.layer_kinds import fan_in, weight_names
from bayesify.nn.settings import Method
from tests.support import (
    METHODS,
    quiet,
    variational,
)

from .recurrent import ALL, CELLS, SEQUENCES, copied, flat, inputs_for, tensors


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ALL)
def test_kl_counts_every_matrix_once(kind: str, method: Method) -> None:
    options = {} if kind in CELLS else {"num_layers": 2, "bidirectional": True}
    policy = {"method": method, "bias": "variational", "prior": {"mean": 0.0, "std": 0.7}}
    model = bayesify.convert(nn.ModuleDict({"a": ALL[kind](**options)}), policy)
    expected = torch.zeros((), dtype=torch.float64)
    layer: Any = model["a"]
    for name, mean in ALL[kind](**options).named_parameters():
        std = F.softplus(getattr(layer, f"{name}_rho").double())
        q = torch.distributions.Normal(getattr(layer, name).double(), std)
        assert getattr(layer, f"{name}_rho").shape == mean.shape
        expected = expected + torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 0.7)).sum()
    torch.testing.assert_close(model.kl().double(), expected, rtol=1e-5, atol=0)
    model.kl.reset()
    assert model.kl(reached=True) == 0
    for _ in range(2):
        layer(*inputs_for(layer, "padded", False))
    torch.testing.assert_close(model.kl(reached=True), model.kl())


def test_fan_in_of_a_bias_is_that_of_its_matrix() -> None:
    layer = nn.LSTM(3, 5, 2, proj_size=2)
    assert [fan_in(layer, name) for name in weight_names(layer)] == [3, 2, 5, 2, 2, 5]
    assert [fan_in(layer, f"bias_{part}_l0") for part in ("ih", "hh")] == [3, 2]
    cell = nn.GRUCell(3, 5)
    assert [fan_in(cell, f"{what}_{part}") for what in ("weight", "bias") for part in ("ih", "hh")] == [3, 5] * 2


@pytest.mark.parametrize("way", ["deepcopy", "pickle", "weights_only", "state_dict"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ALL)
def test_copies(kind: str, method: Method, way: str) -> None:
    layer = variational(ALL[kind](), method)
    inputs, twin, outputs = inputs_for(layer, "padded", True), copied(layer, way), []
    for module in (layer, twin):
        torch.manual_seed(6)
        with quiet(module):
            outputs.append(flat(module(*inputs)))
        outputs.append(flat(module(*inputs)))
    assert type(twin) is type(layer)
    assert torch.equal(outputs[0], outputs[2])
    assert torch.equal(outputs[1], outputs[3])
    assert torch.equal(twin.kl_divergence(), layer.kl_divergence())
    assert not {id(parameter) for parameter in twin.parameters()} & {id(parameter) for parameter in layer.parameters()}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", SEQUENCES)
def test_flat_weights_are_the_plain_layers(kind: str, method: Method) -> None:
    """torch's fused kernel reads a list of its own: the means are in it, still after every move, and nothing else."""
    plain = SEQUENCES[kind](num_layers=2)
    layer = bayesify.convert(plain, method, inplace=True)
    inputs = inputs_for(layer, "padded", True)
    for module in (layer, copied(layer, "deepcopy"), copied(layer, "weights_only"), layer.double(), layer.float()):
        assert module._flat_weights_names == [
            name for name, _ in module.named_parameters() if not name.endswith("_rho")
        ]
        assert all(
            a is getattr(module, b) for a, b in zip(module._flat_weights, module._flat_weights_names, strict=True)
        )
        module.flatten_parameters()
    layer.load_state_dict({name: 2 * value for name, value in layer.state_dict().items()}, assign=True)
    with bayesify.posterior_mean(layer):
        doubled = flat(layer(*inputs))
    reverted = bayesify.revert(layer)
    assert type(reverted) is type(SEQUENCES[kind]())
    assert reverted.state_dict().keys() == SEQUENCES[kind](num_layers=2).state_dict().keys()
    assert torch.equal(flat(reverted(*inputs)), doubled)
    sample = bayesify.revert(layer, "sample")
    assert not torch.equal(flat(sample(*inputs)), doubled)


def test_reset_parameters_starts_means_as_torch_does_and_scales_around_them() -> None:
    layers: list[Any] = [nn.LSTM(3, 4), FlipoutLSTM(3, 4)]
    for layer in layers:
        torch.manual_seed(4)
        layer.reset_parameters()
    assert torch.equal(layers[0].weight_hh_l0, layers[1].weight_hh_l0)
    before = layers[1].weight_hh_l0_rho.clone()
    layers[1].reset_posterior()
    assert torch.equal(before, layers[1].weight_hh_l0_rho)


@pytest.mark.parametrize("backward_inside", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ALL)
def test_autocast(kind: str, method: Method, dtype: torch.dtype, backward_inside: bool) -> None:
    plain = ALL[kind]()
    layer, inputs = variational(plain, method), inputs_for(plain, "padded", True)
    with torch.autocast("cpu", dtype):
        output = layer(*inputs)
        if backward_inside:
            flat(output).float().sum().backward()
    if not backward_inside:
        flat(output).float().sum().backward()
    assert all(
        parameter.grad.isfinite().all() and parameter.grad.dtype is torch.float32 for parameter in layer.parameters()
    )
    assert flat(output).isfinite().all()
    if kind not in ("gru", "projected") and dtype is torch.bfloat16:  # these two have no fused kernel on CPUs
        with torch.autocast("cpu", dtype):
            assert [each.dtype for each in tensors(output)] == [x.dtype for x in tensors(plain(*inputs))]
