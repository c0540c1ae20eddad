"""What the tests of attention share: plain attention with every option, converted, and inputs for it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from bayesify.nn.settings import Method
from tests.support import METHODS, noisy, variational

EMBED, HEADS, BATCH, TARGETS, SOURCES = 8, 2, 2, 3, 4
OPTIONS: dict[str, dict[str, Any]] = {
    "packed": {},
    "packed, no bias": {"bias": False},
    "separate": {"kdim": 6, "vdim": 5},
    "separate, no bias": {"kdim": 6, "vdim": 6, "bias": False},
    "more keys": {"add_bias_kv": True, "add_zero_attn": True},
    "separate, one more key": {"kdim": 6, "vdim": 6, "add_bias_kv": True},
    "packed, a zero key": {"add_zero_attn": True},
}
every_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
every_layout = pytest.mark.parametrize("batch_first", [True, False])
every_method = pytest.mark.parametrize("method", METHODS)


def attention(embed: int = EMBED, **options: Any) -> nn.MultiheadAttention:
    """In float64, with biases that are not zero."""
    plain = nn.MultiheadAttention(embed, HEADS, **options).double().eval()
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            parameter.copy_(torch.randn_like(parameter) * (0.5 if name.endswith("weight") else 1))
    return plain


def converted(plain: nn.MultiheadAttention, method: Method, std: float | None = None, **settings: Any) -> Any:
    """The attention and its `out_proj`, with the same std for all weights, or uneven large ones."""
    layer = variational(plain, method, noisy(**settings))
    layer.out_proj = variational(plain.out_proj, method, noisy(**settings))
    for part in (layer, layer.out_proj) if std else ():
        for name in part.means():
            part.set_std(name, std)
    return layer


def inputs(plain: nn.MultiheadAttention, which: str = "distinct", batch: int | None = BATCH) -> list[Tensor]:
    """Query, key and value in the layer's layout; with `batch` None, unbatched."""

    def one(length: int, features: int) -> Tensor:
        x = torch.randn(batch or 1, length, features, dtype=torch.float64)
        if batch is None:
            return x[0]
        return x if plain.batch_first else x.transpose(0, 1).contiguous()

    query = one(TARGETS, plain.embed_dim)
    if which == "self":
        return [query] * 3
    key = one(SOURCES, plain.kdim)
    return [query, key, key] if which == "memory" else [query, key, one(SOURCES, plain.vdim)]


def run(layer: Any, given: list[Tensor], parameters: dict[str, Tensor] | None = None, **kwargs: Any) -> Tensor:
    """The output, batch first whatever the layout."""
    call = functional_call(layer, parameters, tuple(given), kwargs) if parameters else layer(*given, **kwargs)
    return call[0] if layer.batch_first or call[0].dim() == 2 else call[0].transpose(0, 1)


def posteriors(layer: Any) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean and std of every posterior, by the Parameter's name."""
    parts = (("", layer), ("out_proj.", layer.out_proj))
    return {
        f"{prefix}{name}": (getattr(part, name).detach(), part.std_of(name).detach())
        for prefix, part in parts
        for name in part.means()
    }
