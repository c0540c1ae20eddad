"""The law of attention's noise: J diag(std²) Jᵀ of the plain layer where it is small, one weight draw at any size."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import vmap

import bayesify
from bayesify.nn.settings import Method
from tests.support import judge, judge_moments, same_example

from .attentions import (
    HEADS,
    attention,
    converted,
    every_layout,
    inputs,
    posteriors,
    run,
)


def samples(layer: Any, count: int, given: list[Tensor], **kwargs: Any) -> Tensor:
    with torch.no_grad():
        return vmap(lambda _: run(layer, given, **kwargs), randomness="different")(torch.empty(count))


def small(plain: nn.MultiheadAttention, method: Method, **settings: Any) -> Any:
    """Stds of 1e-4, uneven: the layer is linear in such noise."""
    layer = converted(plain, method, 1e-4, **settings)
    with torch.no_grad():
        for part in (layer, layer.out_proj):
            for name in part.means():
                part.scale_of(name).add_(0.5 * torch.randn_like(part.scale_of(name)))
    return layer


def one_draw(plain: nn.MultiheadAttention, layer: Any, given: list[Tensor], **kwargs: Any) -> Tensor:
    """The covariance of all outputs if one draw of the weights served the whole batch."""
    total = torch.zeros(())
    for name, (mean, std) in posteriors(layer).items():

        def output(value: Tensor, name: str = name) -> Tensor:
            return run(plain, given, {name: value}, **kwargs).flatten()

        scaled = torch.autograd.functional.jacobian(output, mean, vectorize=True).flatten(1) * std.flatten()  # type: ignore[no-untyped-call]
        total = total + scaled @ scaled.T
    return total


@every_layout
@pytest.mark.parametrize("wanted", [{"need_weights": False}, {}], ids=["fused", "weights"])
@pytest.mark.parametrize(
    ("options", "which"),
    [({}, "self"), ({}, "memory"), ({"kdim": 6, "vdim": 5, "add_bias_kv": True}, "distinct")],
    ids=["self", "memory", "separate"],
)
def test_flipout_s_example_is_the_element_of_the_batch(
    options: Any, which: str, batch_first: bool, wanted: Any
) -> None:
    """All positions of an example share one draw; two examples are uncorrelated."""
    plain = attention(4, batch_first=batch_first, **options)
    layer, given = small(plain, "flipout"), inputs(plain, which)
    exact, mean = one_draw(plain, layer, given, **wanted), run(plain, given).detach()
    same, deviation = same_example(mean), exact.diagonal().sqrt()
    position = torch.arange(mean.numel()) // plain.embed_dim
    correlation = (exact / deviation / deviation[:, None]).abs()
    assert correlation[same & (position[:, None] != position)].max() > 0.5
    assert correlation[~same].max() > 0.5  # so the signs have something to take away
    judge_moments(samples(layer, 4000, given, **wanted), mean, exact * same)


class Subclassed(nn.MultiheadAttention):
    """Of no registered class: torch's own function attends, and its products are answered with noise."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, **kwargs: Any) -> Any:  # type: ignore[override]
        return super().forward(query, key, value, **kwargs)


@every_layout
@pytest.mark.parametrize(("options", "batch"), [({}, 2), ({"kdim": 6, "vdim": 5}, 2), ({}, None)])
def test_the_law_of_a_subclass_is_the_same(options: Any, batch: int | None, batch_first: bool) -> None:
    plain: Any = attention(4, batch_first=batch_first, **options)
    plain.__class__ = Subclassed
    layer: Any = bayesify.convert(plain, "flipout")
    bayesify.set_posterior_std(layer, 1e-4)
    given = inputs(plain, "distinct" if options else "self", batch)
    mean = run(plain, given).detach()
    same = same_example(mean, batch is not None)
    judge_moments(samples(layer, 4000, given), mean, one_draw(plain, layer, given) * same)


def test_without_a_batch_all_positions_share_one_draw() -> None:
    plain = attention(4)
    layer, given = small(plain, "flipout"), inputs(plain, "self", None)
    mean = run(plain, given).detach()
    judge_moments(samples(layer, 4000, given), mean, one_draw(plain, layer, given))


def per_position(weights: list[Tensor], x: Tensor) -> Tensor:
    """Self-attention, batch first, with weights of its own at each position of each example."""
    into, into_bias, out, out_bias = weights
    projected = torch.einsum("bloi,bli->blo", into, x) + into_bias
    q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in projected.chunk(3, -1))
    heads = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    return torch.einsum("bloi,bli->blo", out, heads) + out_bias


@every_layout
@pytest.mark.parametrize(("method", "settings"), [("lrt", {}), ("flipout", {"signs": "position"})])
def test_noise_per_position(batch_first: bool, method: Method, settings: Any) -> None:
    plain = attention(4, batch_first=batch_first)
    layer, given = small(plain, method, **settings), inputs(plain, "self")
    x = given[0] if batch_first else given[0].transpose(0, 1)
    means, stds = zip(*posteriors(layer).values(), strict=True)
    wide = [mean.expand(*x.shape[:2], *mean.shape).clone() for mean in means]
    mean = per_position(wide, x)
    torch.testing.assert_close(mean, run(plain, given))
    expected = torch.zeros(())
    for at, std in enumerate(stds):

        def output(value: Tensor, at: int = at) -> Tensor:
            return per_position([*wide[:at], value, *wide[at + 1 :]], x).flatten()

        by_weight = torch.autograd.functional.jacobian(output, wide[at], vectorize=True)  # type: ignore[no-untyped-call]
        scaled = (by_weight * std).flatten(1)
        expected = expected + scaled @ scaled.T
    judge_moments(samples(layer, 4000, given), mean, expected)


@every_layout
def test_one_example_has_the_law_of_one_weight_draw_at_any_size_of_noise(batch_first: bool) -> None:
    plain = attention(4, batch_first=batch_first)
    layer, given, count = converted(plain, "flipout", 0.5), inputs(plain, "self", 1), 20000

    def drawn(_: Tensor) -> Tensor:
        return run(plain, given, {name: mean + std * torch.randn_like(mean) for name, (mean, std) in found.items()})

    found = posteriors(layer)
    with torch.no_grad():
        expected = vmap(drawn, randomness="different")(torch.empty(count)).flatten(1)
    ours = samples(layer, count, given).flatten(1)
    centre = expected.mean(0)
    for name, power in (("mean", lambda x: x), ("products", lambda x: (x[:, :, None] * x[:, None, :]).flatten(1))):
        one, other = power(ours - centre), power(expected - centre)
        judge(name, one.mean(0) - other.mean(0), ((one.var(0) + other.var(0)) / count).sqrt())
