"""Traps: torch's attention and encoder layers, which take fused ways past the layers' noise."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bayesify
from bayesify.nn.watched_forwards import unwatch_forwards
from tests.traps.common import METHODS, differs


def encoder() -> nn.TransformerEncoder:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    return nn.TransformerEncoder(layer, 2).eval()


PADDED = torch.tensor([[False] * 4, [False] * 2 + [True] * 2, [False] + [True] * 3])


def test_01_attention_reads_out_proj_without_calling_it() -> None:
    converted: Any = bayesify.convert(nn.MultiheadAttention(4, 2))
    assert converted.kl.by_layer().keys() == {"", "out_proj"}
    x = torch.randn(3, 2, 4)
    converted.in_proj_weight_rho.data.fill_(-100.0)  # only out_proj is left to be noisy
    assert not torch.equal(converted(x, x, x)[0], converted(x, x, x)[0])
    converted.out_proj.weight_rho.data.fill_(-100.0)
    torch.testing.assert_close(converted(x, x, x)[0], converted(x, x, x)[0])


@METHODS
@pytest.mark.parametrize("compiled", [False, True])
def test_02_fused_encoder_layers(method: str, compiled: bool) -> None:
    model = bayesify.convert(encoder(), method)
    run: Any = torch.compile(model, fullgraph=True, backend="aot_eager") if compiled else model
    assert differs(run, torch.randn(3, 4, 8))
    layer = bayesify.convert(encoder().layers[0], method)
    assert differs(layer, torch.randn(3, 4, 8))


@METHODS
def test_02_the_hook_is_what_keeps_them_noisy(method: str) -> None:
    """And not something else: without it the layers are silent, which is why the test above can fail."""
    model = bayesify.convert(encoder(), method)
    unwatch_forwards(model)  # the watch's mode, too, has torch call the layers one by one
    for layer in model.layers:
        assert list(layer._forward_pre_hooks.values()) == [bayesify.nn.keep_unfused]
        layer._forward_pre_hooks.clear()
        for part in (layer.self_attn, layer.self_attn.out_proj, layer.linear1, layer.linear2):
            part._forward_hooks.clear()
    assert not differs(model, torch.randn(3, 4, 8))


@METHODS
def test_03_nested_tensors(method: str) -> None:
    plain, x = encoder(), torch.randn(3, 4, 8)
    model = bayesify.convert(plain, method)
    assert differs(model, x, src_key_padding_mask=PADDED)
    with torch.no_grad(), bayesify.posterior_mean(model):
        torch.testing.assert_close(
            model(x, src_key_padding_mask=PADDED), plain(x, src_key_padding_mask=PADDED), atol=1e-6, rtol=1e-5
        )
    model.__class__ = nn.TransformerEncoder
    with pytest.raises(Exception, match=r"."), torch.no_grad():
        model(x, src_key_padding_mask=PADDED)


def test_37_looking_with_hooks_would_change_what_is_looked_at() -> None:
    """A hook anywhere in an encoder layer turns the fused path off; planning and the probe must not lean on one."""
    plain, x = encoder(), torch.randn(3, 4, 8)
    bayesify.plan(plain)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in plain.modules())
    calls: list[int] = []

    class Counting(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            calls.append(1)
            return super().forward(input)

    plain.layers[0].linear1.__class__ = Counting  # type: ignore[union-attr]
    with torch.no_grad():
        plain(x)
        assert not calls
        plain.layers[0].register_forward_pre_hook(bayesify.nn.keep_unfused)
        plain(x)
    assert calls
