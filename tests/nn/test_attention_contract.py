"""What holds for every variational layer holds for attention: gradients, KL, copies, names, compiling, precision."""

from __future__ import annotations

import copy
import inspect
import io
import math
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import grad, vmap
from torch.utils.checkpoint import checkpoint

import bayesify
from bayesify.distributions.posterior import Posterior, Scale
from bayesify.nn import FlipoutMultiheadAttention, LRTMultiheadAttention, Settings
from bayesify.nn.attention import FlipoutOutProjection, LRTOutProjection
from bayesify.nn.kl import total_kl
from bayesify.nn.settings import Method
from tests.support import PARAMETERIZATIONS, fixed_noise

from .attentions import (
    BATCH,
    EMBED,
    HEADS,
    SOURCES,
    TARGETS,
    attention,
    converted,
    every_method,
    every_option,
    inputs,
    posteriors,
    run,
)


@every_method
@every_option
@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
def test_noise_reaches_every_scale_from_the_output_alone(options: Any, method: Method, parameterization: Any) -> None:
    plain = attention(**options)
    layer, given = converted(plain, method, parameterization=parameterization), inputs(plain)
    layer(*given)[0].square().sum().backward()
    names = [*layer.means(), *(f"out_proj.{name}" for name in layer.out_proj.means())]
    biases = [] if plain.in_proj_bias is None else ["in_proj_bias", "out_proj.bias"]
    separate = ["q_proj_weight", "k_proj_weight", "v_proj_weight"]
    own = ["in_proj_weight"] if plain._qkv_same_embed_dim else separate
    assert sorted(names) == sorted([*own, "out_proj.weight", *biases])
    for name, parameter in layer.named_parameters():
        for part in parameter.grad.chunk(3) if name.startswith("in_proj_weight") else [parameter.grad]:
            assert part.abs().max() > 0, name


@every_method
@pytest.mark.parametrize("options", [{}, {"kdim": 6, "vdim": 5, "add_bias_kv": True}], ids=["packed", "separate"])
def test_gradients_of_fixed_noise(options: Any, method: Method) -> None:
    plain = attention(4, **options)
    layer, given = converted(plain, method), inputs(plain)
    parameters = {name: parameter.detach().requires_grad_() for name, parameter in layer.named_parameters()}

    def output(*tensors: Tensor) -> Tensor:
        torch.manual_seed(2)
        return run(layer, list(tensors[:3]), dict(zip(parameters, tensors[3:], strict=True)))

    every = (*(each.requires_grad_() for each in given), *parameters.values())
    assert torch.autograd.gradcheck(output, every, fast_mode=True)


@every_method
@every_option
@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
def test_kl_by_hand_and_counted_once(options: Any, method: Method, parameterization: Any) -> None:
    plain = attention(**options)
    layer = converted(plain, method, parameterization=parameterization)
    sums = {}
    for name, (mean, std) in posteriors(layer).items():
        prior = torch.distributions.Normal(torch.zeros_like(mean), torch.ones_like(mean))
        sums[name] = torch.distributions.kl_divergence(torch.distributions.Normal(mean, std), prior).sum()
    own = sum(value for name, value in sums.items() if "out_proj" not in name)
    torch.testing.assert_close(layer.kl_divergence(), own)
    torch.testing.assert_close(total_kl(layer), torch.stack([*sums.values()]).sum())
    _, kl = layer(*inputs(plain), return_kl=True)
    torch.testing.assert_close(kl, total_kl(layer))
    torch.testing.assert_close(total_kl(nn.ModuleList([layer, layer, layer.out_proj])), kl)
    layer.out_proj = plain.out_proj
    torch.testing.assert_close(layer(*inputs(plain), return_kl=True)[1], own)


@every_method
@pytest.mark.parametrize("way", ["deepcopy", "pickle", "weights_only", "state_dict"])
def test_copies(method: Method, way: str) -> None:
    plain = attention()
    layer = bayesify.convert(plain, method)
    bayesify.set_posterior_std(layer, 0.3)
    twin: Any = bayesify.convert(plain, method)
    if way == "weights_only":
        file = io.BytesIO()
        torch.save(layer, file)
        file.seek(0)
        twin = torch.load(file, weights_only=True)
    elif way == "state_dict":
        twin.load_state_dict(layer.state_dict())
    else:
        twin = copy.deepcopy(layer) if way == "deepcopy" else pickle.loads(pickle.dumps(layer))
    assert (type(twin), type(twin.out_proj)) == (type(layer), type(layer.out_proj))
    assert torch.equal(twin.kl(), layer.kl())
    given, outputs = inputs(plain), []
    for module in (layer, twin):
        torch.manual_seed(6)
        outputs.append(module(*given)[0])
    assert torch.equal(*outputs)
    assert not {id(parameter) for parameter in twin.parameters()} & {id(parameter) for parameter in layer.parameters()}


@every_method
@every_option
def test_names_stay_and_plain_checkpoints_load(options: Any, method: Method) -> None:
    plain = attention(**options)
    layer = bayesify.convert(plain, {"method": method, "prior": {"mean": "pretrained", "std": {"init_std": 3.0}}})
    own = ["in_proj_weight"] if plain._qkv_same_embed_dim else ["q_proj_weight", "k_proj_weight", "v_proj_weight"]
    added = {f"{name}_{suffix}" for name in (*own, "out_proj.weight") for suffix in ("rho", "prior_mean")}
    assert layer.state_dict().keys() - plain.state_dict().keys() == added
    assert plain.state_dict().keys() < layer.state_dict().keys()
    other = attention(**options)
    bayesify.load_weights(layer, other.state_dict())
    with bayesify.posterior_mean(layer):
        assert torch.equal(layer(*(given := inputs(plain)))[0], other(*given)[0])
    back = bayesify.revert(layer)
    assert (type(back), type(back.out_proj)) == (type(plain), type(plain.out_proj))
    assert back.state_dict().keys() == plain.state_dict().keys()
    assert torch.equal(back(*given)[0], other(*given)[0])
    drawn = bayesify.revert(layer, "sample")
    for name in (*own, "out_proj.weight"):
        assert not torch.equal(drawn.get_parameter(name), other.get_parameter(name))


CAUSAL = torch.ones(TARGETS, TARGETS).triu(1).bool()
CALLS: dict[str, tuple[dict[str, Any], str, dict[str, Any]]] = {
    "self": ({"batch_first": True}, "self", {"need_weights": False}),
    "sequence-first, weights": ({}, "self", {}),
    "hint": ({}, "self", {"attn_mask": CAUSAL, "is_causal": True, "need_weights": False}),
    "separate, masked": (
        {"kdim": 6, "vdim": 5, "add_bias_kv": True, "add_zero_attn": True}, "distinct",
        {"key_padding_mask": torch.arange(SOURCES).expand(BATCH, -1) > 2, "average_attn_weights": False},
    ),
    "memory": ({}, "memory", {"attn_mask": torch.ones(TARGETS, SOURCES).triu(2).bool()}),
}  # fmt: skip
every_call = pytest.mark.parametrize(("options", "which", "kwargs"), CALLS.values(), ids=CALLS.keys())


@every_method
@every_call
def test_compiles_to_one_graph(options: Any, which: str, kwargs: Any, method: Method) -> None:
    plain = attention(**options)
    layer, given, outcomes = converted(plain, method), inputs(plain, which), []

    def both(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        (output, _), kl = layer(*tensors, return_kl=True, **kwargs)
        return output, kl

    torch._dynamo.reset()
    with fixed_noise():
        for function in (both, torch.compile(both, fullgraph=True, backend="aot_eager")):
            output, kl = function(*given)
            gradients = torch.autograd.grad(output.square().sum() + kl, list(layer.parameters()), allow_unused=True)
            outcomes.append((output, kl, *gradients))
    torch.testing.assert_close(outcomes[1], outcomes[0])


@every_method
@every_call
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_draws_the_same_noise_again(
    options: Any, which: str, kwargs: Any, method: Method, reentrant: bool
) -> None:
    plain = attention(dropout=0.3, **options).train()
    memo: dict[int, Tensor] = {}
    layer, given = converted(plain, method), inputs(plain, which)
    given = [memo.setdefault(id(each), each.requires_grad_()) for each in given]
    leaves = [*memo.values(), *layer.parameters()]

    def output(*tensors: Tensor) -> Tensor:
        return layer(*tensors, **kwargs)[0]

    def gradients(call: Any) -> list[Tensor | None]:
        torch.manual_seed(5)
        result = call(*given)
        torch.randn(7)  # what happens in between must not matter
        for leaf in leaves:
            leaf.grad = None
        result.square().sum().backward()
        return [leaf.grad for leaf in leaves]

    # three arguments that are one tensor become three copies in a reentrant second pass
    again = gradients(lambda *tensors: checkpoint(output, *tensors, use_reentrant=reentrant))
    torch.testing.assert_close(again, gradients(output))


@every_method
@every_call
def test_vmap_over_draws_takes_gradients(options: Any, which: str, kwargs: Any, method: Method) -> None:
    plain = attention(**options)
    layer, given = converted(plain, method), inputs(plain, which)
    parameters = {name: parameter.detach() for name, parameter in layer.named_parameters()}

    def loss(values: dict[str, Tensor]) -> Tensor:
        return run(layer, given, values, **kwargs).square().sum()

    found = vmap(lambda _: grad(loss)(parameters), randomness="different")(torch.empty(3))
    for name, each in found.items():
        assert not torch.equal(each[0], each[1]), name


@every_method
@pytest.mark.parametrize("way", ["autocast", "module"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@every_call
def test_half_precision(
    options: Any, which: str, kwargs: Any, dtype: torch.dtype, way: str, method: Method
) -> None:
    plain = attention(**options).to(torch.float32 if way == "autocast" else dtype)
    to = next(plain.parameters()).dtype
    memo: dict[int, Tensor] = {}
    given = [memo.setdefault(id(x), x.to(to)) for x in inputs(plain, which)]
    for std, tolerance in ((1e-6, 0.1), (None, math.inf)):
        layer = converted(plain, method, std)
        with torch.autocast("cpu", dtype, enabled=way == "autocast"):
            (output, weights), (like, weights_like) = layer(*given, **kwargs), plain(*given, **kwargs)
        assert (output.dtype, weights is None) == (like.dtype, weights_like is None)
        assert weights is None or weights.dtype == weights_like.dtype
        assert (output - like).abs().max() < tolerance
        output.float().square().sum().backward()
        assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in layer.parameters())


def test_scores_do_not_overflow_before_they_are_scaled() -> None:
    plain = nn.MultiheadAttention(64, 1, bias=False).half()
    with torch.no_grad():
        plain.in_proj_weight.copy_(torch.eye(64).repeat(3, 1))
    x = torch.full((2, 1, 64), 40.0).half()
    assert plain(x, x, x)[0].isfinite().all()
    assert converted(plain, "flipout", 1e-6)(x, x, x)[0].isfinite().all()


@pytest.mark.parametrize(
    ("cls", "out"),
    [(FlipoutMultiheadAttention, FlipoutOutProjection), (LRTMultiheadAttention, LRTOutProjection)],
)
def test_stands_alone(cls: Any, out: Any) -> None:
    assert inspect.signature(cls) == inspect.signature(nn.MultiheadAttention)
    settings = Settings(posterior=Posterior("multiplicative", Scale("relative", 0.2)), bias="variational")
    layer = cls(EMBED, HEADS, kdim=6, vdim=5, dropout=0.1, batch_first=True, dtype=torch.float64, settings=settings)
    assert type(layer.out_proj) is out
    assert layer.out_proj._settings == layer._settings == settings.for_depth(1)
    assert {parameter.dtype for parameter in layer.parameters()} == {torch.float64}
    (output, weights), kl = layer(*inputs(layer), return_kl=True)
    assert output.shape == (BATCH, TARGETS, EMBED)
    assert weights.shape == (BATCH, TARGETS, SOURCES)
    assert torch.equal(kl, layer.kl_divergence() + layer.out_proj.kl_divergence())
    torch.testing.assert_close(kl, total_kl(layer))
    (output.square().sum() + kl).backward()
    assert all(parameter.grad is not None for parameter in layer.parameters())
    plain = bayesify.revert(layer)
    assert (type(plain), type(plain.out_proj)) == (nn.MultiheadAttention, type(attention().out_proj))


@every_method
def test_reset_parameters_starts_anew(method: Method) -> None:
    layer = bayesify.convert(nn.MultiheadAttention(EMBED, HEADS), method)
    start = layer.std_of("in_proj_weight").mean()
    before = layer.in_proj_weight.detach().clone()
    bayesify.set_posterior_std(layer, 3.0)
    layer.reset_parameters()
    assert not torch.equal(layer.in_proj_weight, before)
    assert layer.std_of("in_proj_weight").mean() < 2 * start


def test_what_it_has_no_posterior_over_is_no_attribute() -> None:
    layer = bayesify.convert(nn.MultiheadAttention(EMBED, HEADS))
    assert not hasattr(layer, "weight_std")
    assert layer.bias_std is None
    with pytest.raises(AttributeError, match=r"no posterior over 'q_proj_weight', but over \['in_proj_weight'\]"):
        layer.std_of("q_proj_weight")
    assert layer.extra_repr().startswith("q=(")
