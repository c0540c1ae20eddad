"""Models in bfloat16 or float16: their scales are float32, whatever the weights are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bayesify
from tests.support import METHODS

LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[Any, ...]]] = {
    "linear": (lambda: nn.Linear(4, 3), (torch.randn(2, 4),)),
    "conv": (lambda: nn.Conv2d(3, 2, 3), (torch.randn(2, 3, 5, 5),)),
    "embedding": (lambda: nn.Embedding(5, 4), (torch.tensor([[1, 2], [3, 3]]),)),
    "bag": (lambda: nn.EmbeddingBag(5, 4), (torch.tensor([[1, 2], [3, 3]]),)),
    "lstm": (lambda: nn.LSTM(4, 4, proj_size=2), (torch.randn(3, 2, 4),)),
    "cell": (lambda: nn.GRUCell(4, 4), (torch.randn(2, 4),)),
    "attention": (lambda: nn.MultiheadAttention(4, 2), (torch.randn(3, 2, 4),) * 3),
}


def _first(output: Any) -> Tensor:
    tensor: Tensor = output[0] if isinstance(output, tuple) else output
    return tensor


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", LAYERS)
def test_float32_scales_beside_narrow_weights(name: str, method: Any, dtype: torch.dtype) -> None:
    make, inputs = LAYERS[name]
    narrow = tuple(x.to(dtype) if x.is_floating_point() else x for x in inputs)
    built, cast = bayesify.convert(make().to(dtype), method), bayesify.convert(make(), method).to(dtype)
    for layer in (built, cast):
        scales = [value for key, value in layer.named_parameters() if key.endswith("_rho")]
        assert {scale.dtype for scale in scales} == {torch.float32}
        output = _first(layer(*narrow))
        assert output.dtype == dtype
        (output.float().square().sum() + bayesify.kl(layer)).backward()
        assert all(scale.grad is not None and scale.grad.dtype == torch.float32 for scale in scales)
    cast.float()
    assert _first(cast(*inputs)).dtype == torch.float32


@pytest.mark.parametrize("parameterization", ["additive", "multiplicative"])
def test_a_cast_keeps_the_scales_exactly(parameterization: str) -> None:
    layer: Any = bayesify.convert(nn.Linear(64, 64), {"posterior": {"parameterization": parameterization}})
    before = {key: value.clone() for key, value in layer.state_dict().items()}
    (layer(torch.ones(2, 64)).sum()).backward()
    layer.bfloat16()
    name = next(key for key in before if key.startswith("weight_") and "prior" not in key)
    assert torch.equal(layer.state_dict()[name], before[name])
    assert layer.get_parameter(name).grad.dtype == torch.float32
    assert layer.double().state_dict()[name].dtype == torch.float64
    assert layer.half().state_dict()[name].dtype == torch.float32


def test_a_model_in_bfloat16_trains_its_scales() -> None:
    plain = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1)).bfloat16()
    model: Any = bayesify.convert(plain)
    optimizer = torch.optim.Adam(bayesify.param_groups(model, lr=1e-3))
    before = [layer.weight_rho.detach().clone() for _, layer in bayesify.variational_layers(model)]
    x = torch.randn(32, 64, dtype=torch.bfloat16)
    for _ in range(20):
        optimizer.zero_grad()
        (F.mse_loss(model(x).float(), torch.zeros(32, 1)) + model.kl() / 1000).backward()
        optimizer.step()
    after = [layer.weight_rho for _, layer in bayesify.variational_layers(model)]
    assert all((old != new).float().mean() > 0.99 for old, new in zip(before, after, strict=True))
