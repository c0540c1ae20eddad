"""Attention in the models that hold it: torch's transformers and their fused paths, plans, other libraries."""

from __future__ import annotations

import importlib
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

import bayesify
from bayesify.errors import NothingToConvertError
from bayesify.nn import FlipoutMultiheadAttention, Variational
from bayesify.nn.hooks import keep_unfused, mark_reached
from bayesify.nn.settings import Method
from bayesify.nn.watched_forwards import unwatch_forwards
from tests.support import judge_moments, same_example

from .attentions import every_layout, every_method

ATTENTION: dict[str, Any] = {"rules": [{"targets": ["MultiheadAttention"]}]}
PADDING = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])


class OnMemory(nn.Module):
    """A decoder layer as a model of one input."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.layer = nn.TransformerDecoderLayer(8, 2, 16, **options)

    def forward(self, x: Tensor, src_key_padding_mask: Tensor | None = None) -> Tensor:
        return self.layer(x, x.sin(), memory_key_padding_mask=src_key_padding_mask)


class Both(nn.Module):
    """nn.Transformer as a model of one input."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.inner = nn.Transformer(8, 2, 2, 1, 16, **options)

    def forward(self, x: Tensor, src_key_padding_mask: Tensor | None = None) -> Tensor:
        causal = nn.Transformer.generate_square_subsequent_mask(5, dtype=x.dtype)
        padding = {"src_key_padding_mask": src_key_padding_mask, "memory_key_padding_mask": src_key_padding_mask}
        return self.inner(x, x.cos(), tgt_mask=causal, **padding)


def _layer(**options: Any) -> nn.Module:
    return nn.TransformerEncoderLayer(8, 2, 16, **options)


def _encoder(**options: Any) -> nn.Module:
    return nn.TransformerEncoder(_layer(**options), 2, norm=nn.LayerNorm(8))


MAKERS = {"encoder layer": _layer, "encoder": _encoder, "decoder layer": OnMemory, "transformer": Both}
every_maker = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())


def _built(make: Any, **options: Any) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on nested tensors being off
        return make(**options).double().eval()


def _input(batch_first: bool) -> Tensor:
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    return x if batch_first else x.transpose(0, 1).contiguous()


@every_method
@every_layout
@every_maker
@pytest.mark.parametrize("norm_first", [False, True])
def test_noisy_in_eval_without_gradients_and_equal_in_the_mean(
    make: Any, batch_first: bool, norm_first: bool, method: Method
) -> None:
    plain = _built(make, batch_first=batch_first, norm_first=norm_first)
    model: Any = bayesify.convert(plain, method)
    x = _input(batch_first)
    for padding in ({}, {"src_key_padding_mask": PADDING}):
        for mode in (torch.no_grad, torch.inference_mode, torch.enable_grad):
            with mode():
                with bayesify.posterior_mean(model):
                    torch.testing.assert_close(model(x, **padding), plain(x, **padding), rtol=0, atol=1e-6)
                one, other = model(x, **padding), model(x, **padding)
                assert (one - other).abs().max() > 1e-4
    loss = model(x).square().sum()
    loss.backward()
    for name, layer in bayesify.variational_layers(model):
        for mean in layer.means():
            assert layer.scale_of(mean).grad.abs().max() > 0, name
    assert model.kl().isfinite()


@every_method
@every_maker
def test_at_almost_no_noise_valid_positions_are_the_plain_model_s(make: Any, method: Method) -> None:
    plain = _built(make, batch_first=True)
    model, x = bayesify.convert(plain, method), _input(True)
    bayesify.set_posterior_std(model, 1e-9)
    with torch.no_grad():
        found, expected = model(x, src_key_padding_mask=PADDING), plain(x, src_key_padding_mask=PADDING)
    valid = ~PADDING if make in (_layer, _encoder) else slice(None)
    torch.testing.assert_close(found[valid], expected[valid], rtol=0, atol=1e-6)


@every_method
def test_with_any_hook_gone_the_other_still_keeps_the_fused_kernel_off_and_without_both_it_runs(method: Method) -> None:
    x = _input(True)
    for gone, noisy in (({mark_reached}, True), ({keep_unfused}, True), ({mark_reached, keep_unfused}, False)):
        model = bayesify.convert(_built(_layer, batch_first=True), method)
        unwatch_forwards(model)
        for module in model.modules():
            for hooks in (module._forward_hooks, module._forward_pre_hooks):
                for key in [key for key, hook in hooks.items() if hook in gone]:
                    del hooks[key]
        with torch.no_grad():
            assert torch.equal(model(x), model(x)) is not noisy


@every_method
@pytest.mark.parametrize("policy", [{}, {"ignore": ["MultiheadAttention"]}, ATTENTION])
def test_encoders_that_convert_in_part_are_noisy(method: Method, policy: Any) -> None:
    """One converted part suffices for the fused kernel to be off, whichever it is."""
    model = bayesify.convert(_built(_encoder, batch_first=True), {"method": method, **policy})
    x = _input(True)
    with torch.no_grad():
        for padding in ({}, {"src_key_padding_mask": PADDING}):
            assert not torch.equal(model(x, **padding), model(x, **padding))


@every_method
def test_without_its_switch_an_encoder_hands_nested_tensors_on(method: Method) -> None:
    """The fact that the switch of nested tensors is for: padded positions come out as zeros, or not at all."""
    policy = {"method": method, **ATTENTION}
    model: Any = bayesify.convert(_built(_encoder, batch_first=True), policy)
    x = _input(True)
    seen: list[bool] = []
    unwatch_forwards(model)  # the watch's mode, too, keeps torch from its fused way
    model.layers[0].register_forward_pre_hook(lambda module, args: seen.append(args[0].is_nested))
    for cls in (type(model), nn.TransformerEncoder):
        model.__class__ = cls
        with torch.no_grad():
            model(x, src_key_padding_mask=PADDING)
    assert seen == [False, True]


@every_method
def test_a_layer_takes_nested_tensors_where_its_attention_converts(method: Method) -> None:
    plain = _built(_layer, batch_first=True)
    model = bayesify.convert(plain, {"method": method, **ATTENTION})
    x = torch.nested.nested_tensor([torch.randn(3, 8), torch.randn(5, 8)]).double()
    with torch.no_grad():
        expected = plain(x).to_padded_tensor(0.0)
        with bayesify.posterior_mean(model):
            torch.testing.assert_close(model(x).to_padded_tensor(0.0), expected, rtol=0, atol=1e-6)
        assert not torch.equal(*(model(x).to_padded_tensor(0.0) for _ in range(2)))


@every_layout
def test_each_example_of_an_encoder_layer_has_the_covariance_of_one_weight_draw(batch_first: bool) -> None:
    plain = nn.TransformerEncoderLayer(4, 2, 4, dropout=0.0, batch_first=batch_first).double()
    model: Any = bayesify.convert(plain, "flipout")
    bayesify.set_posterior_std(model, 1e-4)
    x = torch.randn(2, 3, 4, dtype=torch.float64)

    def run(module: nn.Module, parameters: dict[str, Tensor] | None = None) -> Tensor:
        given = x if batch_first else x.transpose(0, 1)
        output: Tensor = functional_call(module, parameters or {}, (given,))
        return output if batch_first else output.transpose(0, 1)

    mean, exact = run(plain).detach(), torch.zeros(())
    for name, layer in bayesify.variational_layers(model):
        for own in layer.means():
            full, value = f"{name}.{own}", getattr(layer, own).detach()
            by_weight: Any = torch.func.jacrev(lambda given, full=full: run(plain, {full: given}).flatten())(value)
            scaled = by_weight.flatten(1) * layer.std_of(own).detach().flatten()
            exact = exact + scaled @ scaled.T
    with torch.no_grad():
        samples = vmap(lambda _: run(model), randomness="different")(torch.empty(4000))
    judge_moments(samples, mean, exact * same_example(mean))


# ---- plans


def _rows(model: nn.Module, policy: Any) -> dict[str, Any]:
    return {row.name: row for row in bayesify.plan(model, policy).rows}


@every_method
@pytest.mark.parametrize("target", ["MultiheadAttention", "**.self_attn"])
def test_the_attention_by_type_or_name_takes_its_out_proj_along(method: Method, target: str) -> None:
    rows = _rows(_built(_encoder), {"method": method, "rules": [{"targets": [target]}]})
    converting = [name for name, row in rows.items() if row.verb == "converts"]
    own = ("self_attn", "self_attn.out_proj")
    assert converting == [f"layers.{at}.{name}" for at in (0, 1) for name in own]


def test_out_proj_alone_stays_and_the_plan_says_why() -> None:
    model = _built(_layer)
    rows = _rows(model, {"rules": [{"targets": ["**.out_proj", "linear1"]}]})
    assert [name for name, row in rows.items() if row.verb == "converts"] == ["linear1"]
    why = "nn.MultiheadAttention reads its weight without calling it, and is kept"
    assert (rows["self_attn.out_proj"].verb, rows["self_attn.out_proj"].reason) == ("keeps", why)
    assert _rows(model, {"rules": [{"targets": ["Linear"]}]})["self_attn.out_proj"].verb == "keeps"
    with pytest.raises(NothingToConvertError, match=why):
        bayesify.plan(model, {"rules": [{"targets": ["**.out_proj"]}]})


@every_method
def test_an_attention_whose_out_proj_is_kept_is_noisy_and_exact_in_the_mean(method: Method) -> None:
    plain = nn.MultiheadAttention(8, 2, batch_first=True).double()
    layer: Any = bayesify.convert(plain, {"method": method, "ignore": ["out_proj"]})
    x = _input(True)
    assert type(layer.out_proj) is type(plain.out_proj)
    assert not torch.equal(layer(x, x, x)[0], layer(x, x, x)[0])
    with bayesify.posterior_mean(layer):
        assert torch.equal(layer(x, x, x)[0], plain(x, x, x)[0])


@every_layout
def test_the_plan_does_not_doubt_the_layout_of_attention_itself(batch_first: bool) -> None:
    rows = _rows(_built(_layer, batch_first=batch_first), "flipout")
    assert [rows[name].notes for name in ("self_attn", "self_attn.out_proj")] == [(), ()]
    assert rows["self_attn"].settings.batch_dim == rows["self_attn.out_proj"].settings.batch_dim == 0


# ---- other libraries


def _vit() -> tuple[nn.Module, dict[str, Tensor]]:
    model = importlib.import_module("torchvision.models").VisionTransformer(32, 16, 2, 2, 16, 32)
    nn.init.normal_(model.heads.head.weight)  # zero as built: no gradient would pass
    return model, {"x": torch.randn(2, 3, 32, 32)}


def _of_transformers(name: str) -> tuple[nn.Module, dict[str, Tensor]]:
    transformers = pytest.importorskip("transformers")
    small = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = small | {"image_size": 32, "patch_size": 16}
    pixels = {"pixel_values": torch.randn(2, 3, 32, 32)}
    if name == "siglip":
        return transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**vision)), pixels
    config = transformers.CLIPConfig(text_config=small | {"vocab_size": 99, "eos_token_id": 98}, vision_config=vision)
    return transformers.CLIPModel(config), {**pixels, "input_ids": torch.randint(90, (2, 6))}


@every_method
@pytest.mark.usefixtures("vision")
@pytest.mark.parametrize(
    ("name", "attentions"), [("torchvision ViT", 2), ("siglip", 1), ("clip, all of nn.Linear", 0)]
)
def test_other_libraries_models(name: str, attentions: int, method: Method) -> None:
    plain, given = _vit() if "ViT" in name else _of_transformers("clip" if "clip" in name else name)
    plain.eval()
    model: Any = bayesify.convert(plain, method)
    found = [module for module in model.modules() if isinstance(module, nn.MultiheadAttention)]
    assert len(found) == attentions
    assert all(isinstance(each, Variational) and isinstance(each.out_proj, Variational) for each in found)
    assert not any("out_proj" in row.name for row in bayesify.plan(plain, method).rows if row.verb == "blocked")

    def output(module: nn.Module) -> Tensor:
        result = module(**given)
        return result if isinstance(result, Tensor) else result.get("pooler_output", next(iter(result.values())))

    with torch.no_grad():
        with bayesify.posterior_mean(model):
            assert torch.equal(output(model), output(plain))
        assert not torch.equal(output(model), output(model))
    output(model).square().sum().backward()
    for layer in found:
        for part in (layer, layer.out_proj):
            assert all(part.scale_of(mean).grad.abs().max() > 0 for mean in part.means())


def test_a_stand_alone_attention_in_a_model_counts_once() -> None:
    model = nn.Sequential(FlipoutMultiheadAttention(8, 2))
    expected = model[0].kl_divergence() + model[0].out_proj.kl_divergence()
    torch.testing.assert_close(bayesify.kl(model), expected)
    assert [name for name, _ in bayesify.variational_layers(model)] == ["0", "0.out_proj"]
