"""The fused encoder runs past its layers unless it is switched off, and sequence-first parents are known."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bayesify.planning.blockers import Site
from bayesify.planning.surroundings import batch_dim, fused_parents

Layer = nn.TransformerEncoderLayer


class _Noisy(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + torch.randn(())


class _MyLayer(Layer):
    def forward(self, src: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return super().forward(src, *args, **kwargs)


def _encoder(cls: type[Layer] = Layer, **kwargs: Any) -> nn.TransformerEncoder:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        options = {"batch_first": True, **kwargs}
        return nn.TransformerEncoder(cls(8, 2, 8, **options), 2).eval()


@pytest.mark.parametrize("cls", [Layer, _MyLayer])
def test_only_the_layers_around_converted_modules_are_named(cls: type[Layer]) -> None:
    encoder, other = _encoder(cls), _encoder(cls)
    model = nn.Sequential(encoder, other)
    found = fused_parents(model, [encoder.layers[1].linear2])
    assert [name for name, _ in found.layers] == ["0.layers.1"]
    assert [name for name, _ in found.encoders] == ["0"]
    assert found.layers[0][1] is encoder.layers[1]
    assert fused_parents(model, []) == fused_parents(nn.Linear(2, 2), [encoder])
    assert fused_parents(encoder.layers[0].linear1, [encoder.layers[0].linear1]).layers == ()


def test_an_encoder_that_uses_no_nested_tensors_has_nothing_to_switch() -> None:
    encoder = _encoder(batch_first=False)
    found = fused_parents(encoder, [encoder.layers[0].linear1])
    assert (len(found.layers), found.encoders) == (1, ())


@pytest.mark.parametrize("switched", [True, False])
def test_a_hook_on_the_named_layers_is_what_switches_the_fused_path_off(switched: bool) -> None:
    """The fact about torch that the names rest on: without the hook, the layers are never called."""
    encoder, x = _encoder(), torch.randn(2, 3, 8)
    for layer in encoder.layers:
        layer.linear1.__class__ = _Noisy
    for _, layer in fused_parents(encoder, [layer.linear1 for layer in encoder.layers]).layers:
        if switched:
            layer.register_forward_pre_hook(lambda *_: None)
    with torch.no_grad():
        assert torch.equal(encoder(x), encoder(x)) is not switched


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_the_batch_is_dimension_one_of_a_sequence_first_layer(kind: str, batch_first: bool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = nn.Transformer(8, 2, 1, 1, 8, batch_first=batch_first)
    layer = getattr(model, kind).layers[0]
    parents = (("", model), (f"{kind}.layers.0", layer))
    assert batch_dim(Site(layer.linear1, f"{kind}.layers.0.linear1", parents)) == (0 if batch_first else 1)


def test_the_batch_is_dimension_zero_where_nothing_is_known() -> None:
    assert batch_dim(Site(nn.Linear(2, 2), "fc", (("", nn.Module()),))) == 0
