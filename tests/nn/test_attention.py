"""nn.MultiheadAttention: torch's own in every option, but for the noise in its projections."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

import bayesify
from bayesify.nn.settings import Method
from tests.support import fixed_noise

from .attentions import (
    BATCH,
    EMBED,
    HEADS,
    SOURCES,
    TARGETS,
    attention,
    converted,
    every_layout,
    every_method,
    every_option,
    inputs,
)


def masks(which: str, batch: int | None) -> Iterator[dict[str, Any]]:
    """Every form of masks for these inputs; none hides the first key, so that no row is empty."""
    sources = TARGETS if which == "self" else SOURCES

    def hidden(*shape: int) -> Tensor:
        mask = torch.rand(*shape, sources) < 0.4
        mask[..., 0] = False
        return mask

    def added(*shape: int) -> Tensor:
        return torch.randn(*shape, sources, dtype=torch.float64).masked_fill(hidden(*shape), -math.inf)

    three = (HEADS * (batch or 1), TARGETS)
    of_scores = [None, *(make(*shape) for make in (hidden, added) for shape in ((TARGETS,), three))]
    of_keys = [None, *(make(*([batch] if batch else [])) for make in (hidden, added))]
    causal = nn.Transformer.generate_square_subsequent_mask(sources, dtype=torch.float64)[:TARGETS]
    for mask, padding in itertools.product(of_scores, of_keys):
        yield {"attn_mask": mask, "key_padding_mask": padding}
    for padding in of_keys:
        yield {"attn_mask": causal, "key_padding_mask": padding, "is_causal": True}


def assert_same(found: Any, expected: Any, tolerance: float = 1e-6) -> None:
    (output, weights), (like, weights_like) = found, expected
    torch.testing.assert_close(output, like, rtol=0, atol=tolerance)
    assert (weights is None) == (weights_like is None)
    if weights is not None:
        torch.testing.assert_close(weights, weights_like, rtol=0, atol=tolerance)


WANTED = [{"need_weights": False}, {}, {"average_attn_weights": False}]


@every_method
@every_layout
@every_option
def test_every_call_is_torch_s_but_for_the_noise(options: Any, batch_first: bool, method: Method) -> None:
    plain = attention(batch_first=batch_first, **options)
    layer = converted(plain, method, 1e-9)
    kinds = ["distinct"] if plain.kdim != plain.vdim else ["distinct", "memory"]
    kinds += ["self"] if plain.kdim == plain.vdim == EMBED else []
    warnings.filterwarnings("ignore", "Support for mismatched")
    for which, batch in itertools.product(kinds, (BATCH, None)):
        given = inputs(plain, which, batch)
        for masked, wanted in itertools.product(masks(which, batch), WANTED):
            expected = plain(*given, **masked, **wanted)
            found = layer(*given, **masked, **wanted)
            assert_same(found, expected)
            assert found[0].is_contiguous() or not expected[0].is_contiguous()


@every_method
@pytest.mark.parametrize("wanted", WANTED, ids=str)
def test_dropout_is_on_the_weights_in_training_only(method: Method, wanted: Any) -> None:
    plain = attention(dropout=0.5).train()
    layer, given, outcomes = converted(plain, method, 1e-9), inputs(plain), []
    with fixed_noise():  # takes no random numbers, so that both drop the same
        for module in (plain, layer):
            torch.manual_seed(3)
            outcomes.append(module(*given, **wanted))
    assert_same(*outcomes)
    assert (outcomes[0][0] - plain.eval()(*given, **wanted)[0]).abs().max() > 0.1
    layer.eval()
    assert_same(layer(*given, **wanted), plain(*given, **wanted))


def _wrong_calls() -> dict[str, tuple[str, dict[str, Any]]]:
    x = torch.randn(BATCH, TARGETS, EMBED, dtype=torch.float64)
    no, batch = torch.zeros, torch.cat([x, x])
    return {
        "a hint without its mask": ("", {"is_causal": True}),
        "2D mask that would broadcast": ("2D attn_mask", {"attn_mask": no(1, TARGETS)}),
        "2D mask that is too wide": ("2D attn_mask", {"attn_mask": no(TARGETS, TARGETS + 1)}),
        "3D mask without the heads": ("3D attn_mask", {"attn_mask": no(BATCH, TARGETS, TARGETS)}),
        "4D mask": ("4-D", {"attn_mask": no(BATCH, HEADS, TARGETS, TARGETS)}),
        "mask of integers": ("bool and float", {"attn_mask": no(TARGETS, TARGETS).long()}),
        "padding of integers": ("bool and float", {"key_padding_mask": no(BATCH, TARGETS).long()}),
        "padding that would broadcast": ("1", {"key_padding_mask": no(1, TARGETS)}),
        "padding that is too wide": ("4", {"key_padding_mask": no(BATCH, TARGETS + 1)}),
        "padding of one dimension": ("1-D", {"key_padding_mask": no(TARGETS)}),
        "query of one dimension": ("1-D", {"query": x[0, 0], "key": x[0, 0], "value": x[0, 0]}),
        "unbatched key": ("2-D", {"key": x[0]}),
        "shorter value": ("", {"value": x[:, 1:]}),
        "key of another batch": ("", {"key": batch, "value": batch}),
        "key that would broadcast": ("", {"key": x[:1], "value": x[:1]}),
        "narrow query": ("", {"query": x[..., 1:]}),
    }


@every_method
@pytest.mark.parametrize("case", _wrong_calls())
def test_wrong_calls_raise_as_torch_s_do(method: Method, case: str) -> None:
    plain = attention(batch_first=True)
    words, wrong = _wrong_calls()[case]
    x = torch.randn(BATCH, TARGETS, EMBED, dtype=torch.float64)
    call = {"query": x, "key": x, "value": x} | wrong
    with pytest.raises(Exception, match=words or None) as expected:
        plain(**call)
    with pytest.raises(expected.type, match=words or None):
        converted(plain, method)(**call)


@every_method
@every_layout
@every_option
@pytest.mark.parametrize("training", [True, False])
def test_quiet_is_the_plain_layer_and_else_it_is_noisy(
    options: Any, batch_first: bool, method: Method, training: bool
) -> None:
    plain = attention(batch_first=batch_first, dropout=0.5, **options).train(training)
    layer = bayesify.convert(plain, method)
    kinds = ["self"] if plain.kdim == plain.vdim == EMBED else ["distinct"]
    for which, with_grad, wanted in itertools.product(kinds, (True, False), WANTED):
        given, outcomes = inputs(plain, which), []
        with torch.set_grad_enabled(with_grad):
            with bayesify.posterior_mean(layer):
                for module in (plain, layer):
                    torch.manual_seed(4)
                    outcomes.append(module(*given, **wanted))
            torch.manual_seed(4)
            noisy_one = layer(*given, **wanted)[0]
            assert not torch.equal(noisy_one, layer(*given, **wanted)[0])
        (output, weights), (like, weights_like) = outcomes
        assert torch.equal(output, like)
        assert weights is weights_like is None or torch.equal(weights, weights_like)
        assert not torch.equal(noisy_one, output)


@every_method
def test_torch_s_fused_kernel_runs_where_it_did_and_never_past_the_noise(method: Method) -> None:
    plain = attention(batch_first=True)
    layer, given = bayesify.convert(plain, method), inputs(plain, "self")
    kernel = torch._native_multi_head_attention
    with torch.no_grad(), mock.patch("torch._native_multi_head_attention", wraps=kernel) as fused:
        plain(*given)
        assert fused.call_count == 1
        layer(*given)
        assert fused.call_count == 1
        with bayesify.posterior_mean(layer):
            layer(*given)
        assert fused.call_count == 2


@every_method
@pytest.mark.parametrize("wanted", WANTED, ids=str)
def test_nested_tensors(method: Method, wanted: Any) -> None:
    plain = attention(batch_first=True)
    rows = [torch.randn(length, EMBED, dtype=torch.float64) for length in (3, 1, 4)]
    x = torch.nested.nested_tensor(rows)
    layer = converted(plain, method, 1e-9)
    with torch.no_grad():
        found, expected = layer(x, x, x, **wanted), plain(x, x, x, **wanted)
        assert found[0].is_nested
        padded = [(each[0].to_padded_tensor(0.0), each[1]) for each in (found, expected)]
        assert_same(*padded)
        loud = converted(plain, method)
        assert not torch.equal(*(loud(x, x, x)[0].to_padded_tensor(0.0) for _ in range(2)))
        with bayesify.posterior_mean(loud):
            assert torch.equal(loud(x, x, x)[0].to_padded_tensor(0.0), padded[1][0])


@every_method
def test_nested_tensors_are_refused_where_torch_refuses_them(method: Method) -> None:
    x, y = (torch.nested.nested_tensor([torch.randn(2, EMBED), torch.randn(3, EMBED)]).double() for _ in range(2))
    jagged = torch.nested.nested_tensor([torch.randn(2, EMBED)], layout=torch.jagged, dtype=torch.float64)
    hidden = torch.zeros(2, 3, dtype=torch.bool)
    for batch_first, call, masked in [
        (True, (x, y, y), {}),
        (True, (x, x, y), {}),
        (False, (x, x, x), {}),
        (True, (x, x, x), {"key_padding_mask": hidden}),
        (True, (jagged, jagged, jagged), {}),
    ]:
        plain = attention(batch_first=batch_first)
        for layer in (plain, converted(plain, method)):
            with torch.no_grad(), pytest.raises(AssertionError, match=r"[Nn]ested"):
                layer(*call, **masked)
