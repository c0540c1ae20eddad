"""Conversion on whole models: what it gives, what it leaves alone, and that it can be taken back."""

from __future__ import annotations

import copy
import gc
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bayesify
from bayesify.errors import (
    AlreadyVariationalError,
    NameClashError,
    NotCopyableError,
    NotVariationalError,
    UninitializedLayerError,
    UsageError,
)
from bayesify.nn.registry import _VARIANTS
from bayesify.surgery import rewrite as surgery
from tests.nets import SmallResNet, Tangled, image, randomness, snapshot, tokens

VARIATIONAL_BIAS = {"method": "flipout", "bias": "variational"}
METHODS = ("flipout", "lrt")
MODELS: dict[str, tuple[Any, Any]] = {"resnet": (SmallResNet, image), "tangled": (Tangled, tokens)}
KINDS = pytest.mark.parametrize(("make", "data"), MODELS.values(), ids=MODELS)


def encoder() -> nn.TransformerEncoder:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    return nn.TransformerEncoder(layer, 2)


# convert


@KINDS
@pytest.mark.parametrize("method", METHODS)
def test_the_original_and_all_randomness_are_left_alone(make: Any, data: Any, method: str) -> None:
    model = make()
    before = snapshot(model)
    converted = bayesify.convert(model, method)
    assert snapshot(model) == before
    mine = {each.untyped_storage().data_ptr() for each in [*model.parameters(), *model.buffers()]}
    theirs = {each.untyped_storage().data_ptr() for each in [*converted.parameters(), *converted.buffers()]}
    assert mine.isdisjoint(theirs)
    assert not hasattr(model, "kl")


@KINDS
def test_in_place_keeps_every_object(make: Any, data: Any) -> None:
    model = make()
    objects = {name: id(each) for name, each in model.named_parameters()}
    modules = {name: id(each) for name, each in model.named_modules()}
    values, before = [each.detach().clone() for each in model.parameters()], randomness()
    assert bayesify.convert(model, inplace=True) is model
    assert randomness() == before
    assert {name: id(each) for name, each in model.named_modules()} == modules
    after = {name: id(each) for name, each in model.named_parameters()}
    assert objects.items() <= after.items()
    assert {name.rpartition("_")[2] for name in after.keys() - objects.keys()} == {"rho"}
    kept = (each for name, each in model.named_parameters() if name in objects)
    assert all(torch.equal(*pair) for pair in zip(values, kept, strict=True))


@pytest.mark.parametrize("method", METHODS)
def test_what_a_layer_had_it_has(method: Any) -> None:
    model = (
        nn.Sequential(nn.Conv2d(2, 3, 3), nn.Linear(2, 2)).to(torch.float64, memory_format=torch.channels_last).eval()
    )
    model[0].note, model[1].bias.requires_grad = "mine", False  # type: ignore[assignment, union-attr]
    model[0].train()
    bayesify.convert(model, {"method": method, "bias": "variational"}, inplace=True)
    conv, linear = model
    assert (conv.note, conv.training, linear.training) == ("mine", True, False)
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(linear, nn.Linear)
    for each in conv.parameters():
        assert each.dtype is torch.float64
    assert conv.weight_rho.is_contiguous(memory_format=torch.channels_last)
    assert (linear.weight_rho.requires_grad, linear.bias_rho.requires_grad) == (True, False)


class Structured(nn.Module):
    """Outputs of every shape that a forward has."""

    def __init__(self, wrap: Any) -> None:
        super().__init__()
        self.layers, self.wrap = nn.ModuleDict({"fc": nn.Linear(3, 3)}), wrap

    def forward(self, x: Tensor, *, scale: float = 1.0) -> Any:
        return self.wrap(self.layers["fc"](x) * scale)


@pytest.mark.parametrize("wrap", [tuple, lambda y: {"y": y, "n": 1}, lambda y: [y, None], lambda y: slice(y)])
def test_outputs_keep_their_structure_and_inputs_their_keywords(wrap: Any) -> None:
    model, x = Structured(wrap), torch.randn(2, 3)
    got = bayesify.convert(model)(x, scale=2.0)
    assert type(got) is type(model(x))


def test_hooks_fire_as_before_and_see_the_noise() -> None:
    model, log = nn.Sequential(nn.Linear(3, 3), nn.ReLU()), []
    model[0].register_forward_pre_hook(lambda *_: log.append("before"))
    model[0].register_forward_hook(lambda _, args, output: (log.append("after"), output * 0)[1])
    model[0].register_full_backward_hook(lambda *_: log.append("backward"))
    bayesify.convert(model, inplace=True)
    output = model(torch.randn(2, 3, requires_grad=True))
    output.sum().backward()
    assert log == ["before", "after", "backward"]
    assert torch.equal(output, torch.zeros(2, 3))


def test_the_policy_is_left_alone() -> None:
    policy = {"method": "lrt", "posterior": {"init_std": 0.1}, "rules": [{"targets": ["first"]}]}
    given = copy.deepcopy(policy)
    bayesify.convert(SmallResNet(), policy)
    assert policy == given


def test_converting_in_inference_mode_gives_a_model_that_trains() -> None:
    layer = nn.Linear(3, 3)
    with torch.inference_mode():
        converted = [bayesify.convert(layer), bayesify.convert(layer, inplace=True)]
    for each in converted:
        (each(torch.ones(1, 3)).sum() + each.kl()).backward()  # type: ignore[operator]
        assert each.weight_rho.grad is not None  # type: ignore[union-attr]


# names


@pytest.mark.parametrize("kind", ["attribute", "method", "child", "buffer", "property"])
def test_a_model_that_has_a_kl_of_its_own(kind: str) -> None:
    cls: Any = type("Own", (nn.Sequential,), {} if kind not in ("method", "property") else {
        "kl": (lambda self: 0) if kind == "method" else property(lambda self: 0)
    })  # fmt: skip
    model = cls(nn.Linear(2, 2))
    if kind == "attribute":
        model.kl = 3.0
    elif kind == "child":
        model.add_module("kl", nn.Identity())
    elif kind == "buffer":
        model.register_buffer("kl", torch.zeros(()))
    before = snapshot(model)
    with pytest.raises(NameClashError, match="kl_name="):
        bayesify.convert(model, inplace=True)
    assert snapshot(model) == before
    bayesify.convert(model, inplace=True, kl_name="kl_q")
    assert model.kl_q() > 0
    assert bayesify.kl(model) == model.kl_q()
    bayesify.revert(model, inplace=True)
    assert snapshot(model)[0] == before[0]


@pytest.mark.parametrize("name", ["forward", "weight", "weight_rho", "_way", "_settings", "estimate", "a b", "1", ""])
def test_names_that_kl_cannot_have(name: str) -> None:
    layer = nn.Linear(2, 2)
    with pytest.raises((NameClashError, UsageError), match="name"):
        bayesify.convert(layer, inplace=True, kl_name=name)
    assert type(layer) is nn.Linear


# failures


FAILING = {
    "made": (surgery, "posterior_tensors"),
    "added": (bayesify.nn.Variational, "add_posterior"),
    "switched": (surgery, "_adjust"),
    "kl": (surgery.Ledger, "__init__"),
}


@pytest.mark.parametrize(
    ("where", "at"), [(where, at) for where in FAILING for at in (0, 1, 2) if where != "kl" or not at]
)
def test_a_failure_leaves_the_model_as_it_was(monkeypatch: pytest.MonkeyPatch, where: str, at: int) -> None:
    model = nn.Sequential(encoder(), Tangled(), nn.Conv1d(2, 2, 1))
    original, calls = getattr(*FAILING[where]), []

    def failing(*args: Any) -> Any:
        if len(calls) == at:
            raise MemoryError("injected")
        calls.append(args)
        return original(*args)

    monkeypatch.setattr(*FAILING[where], failing)
    before = snapshot(model)
    with pytest.raises(MemoryError, match="injected"):
        bayesify.convert(model, VARIATIONAL_BIAS, inplace=True)
    assert snapshot(model) == before


class Guarded(nn.Linear):
    """Refuses attributes that it does not know."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "_reached":
            raise AttributeError("guarded")
        super().__setattr__(name, value)


def test_a_layer_that_refuses_half_way_is_put_back_with_all_others() -> None:
    bayesify.register(Guarded)
    try:
        model = nn.Sequential(nn.Linear(2, 2), Guarded(2, 2), nn.Linear(2, 2))
        before = snapshot(model)
        with pytest.raises(AttributeError, match="guarded"):
            bayesify.convert(model, inplace=True)
        assert snapshot(model) == before
    finally:
        del _VARIANTS[Guarded]


def test_converting_twice() -> None:
    model = bayesify.convert(SmallResNet())
    before = snapshot(model)
    for method in METHODS:
        with pytest.raises(AlreadyVariationalError, match="conv1"):
            bayesify.convert(model, method, inplace=True)
    assert snapshot(model) == before


def test_what_torch_cannot_copy_converts_in_place() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model.held = torch.ones(2, requires_grad=True) * 2  # type: ignore[assignment]
    with pytest.raises(NotCopyableError, match="inplace=True"):
        bayesify.convert(model)
    bayesify.convert(model, inplace=True)
    assert isinstance(model[1], bayesify.nn.FlipoutLinear)


# revert


@pytest.mark.parametrize("policy", [*METHODS, VARIATIONAL_BIAS, {"posterior": {"parameterization": "multiplicative"}}])
@pytest.mark.parametrize("make", [SmallResNet, Tangled, encoder, lambda: nn.Linear(2, 3)])
def test_revert_is_the_inverse_to_the_last_attribute(make: Any, policy: Any) -> None:
    model = make()
    model.register_forward_hook(lambda *_: None)
    for child in model.children():
        child.register_forward_pre_hook(lambda *_: None)
    before = snapshot(model)
    bayesify.convert(model, policy, inplace=True)
    assert snapshot(model) != before
    assert bayesify.revert(model, inplace=True) is model
    assert snapshot(model) == before


def test_revert_leaves_the_switches_that_the_user_set() -> None:
    model = encoder()
    model.use_nested_tensor = False
    bayesify.revert(bayesify.convert(model, inplace=True), inplace=True)
    assert model.use_nested_tensor is False


def test_revert_to_a_sample_draws_each_weight_once_and_keeps_ties() -> None:
    model = bayesify.convert(Tangled(), VARIATIONAL_BIAS)
    bayesify.set_posterior_std(model, 2.0)
    before = snapshot(model)
    drawn = [bayesify.revert(model, "sample") for _ in range(3)]
    mean = bayesify.revert(model)
    assert snapshot(model)[0] == before[0]
    assert drawn[0].head.weight is drawn[0].emb.weight
    assert drawn[0].twin.weight is drawn[0].a.weight
    for (name, a), b, c in zip(mean.named_parameters(), drawn[0].parameters(), drawn[1].parameters(), strict=True):
        noisy = name.partition(".")[0] in ("a", "twin", "spare", "emb", "attn")
        assert torch.equal(b, c) is not noisy, name
        assert torch.equal(a, b) is not noisy, name
    assert 1.2 < (drawn[0].spare.weight - mean.spare.weight).std() < 2.9


def test_revert_of_a_part_leaves_the_rest() -> None:
    model = bayesify.convert(SmallResNet())
    whole, part = model.kl(), bayesify.kl(model.layer1)  # type: ignore[operator]
    bayesify.revert(model.layer1, inplace=True)
    torch.testing.assert_close(model.kl(), whole - part)  # type: ignore[operator]


@pytest.mark.parametrize(
    "call", ["revert", "reset_posterior", "kl", "param_groups", "set_posterior_std", "load_weights"]
)
def test_a_plain_model_is_refused(call: str) -> None:
    more = {"set_posterior_std": (0.1,), "load_weights": ({},)}.get(call, ())
    with pytest.raises(
        NotVariationalError, match=r"SmallResNet has no variational layer: call bayesify\.convert first"
    ):
        getattr(bayesify, call)(SmallResNet(), *more)
    with pytest.raises(NotVariationalError), bayesify.posterior_mean(SmallResNet()):
        pass


def test_revert_refuses_other_words_and_derived_classes() -> None:
    model = bayesify.convert(SmallResNet())
    with pytest.raises(UsageError, match="Did you mean 'sample'"):
        bayesify.revert(model, "samples")  # type: ignore[arg-type]
    derived = nn.Sequential(nn.Linear(2, 2), type("Mine", (bayesify.nn.FlipoutLinear,), {})(2, 2))
    with pytest.raises(UsageError, match="Mine was derived"):
        bayesify.revert(derived, inplace=True)


# posterior_mean


@KINDS
@pytest.mark.parametrize("policy", [*METHODS, VARIATIONAL_BIAS])
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_the_mean_is_bit_equal_and_the_rest_is_noise(make: Any, data: Any, policy: Any, mode: str) -> None:
    model, x = getattr(make(), mode)(), data()
    converted = bayesify.convert(model, policy)
    with bayesify.posterior_mean(converted):
        torch.manual_seed(1)
        quiet = converted(x)
    torch.manual_seed(1)
    assert torch.equal(quiet, model(x))
    for ours, theirs in zip(bayesify.revert(converted).buffers(), model.buffers(), strict=True):
        assert torch.equal(ours, theirs)
    torch.manual_seed(1)
    first = converted(x)
    torch.manual_seed(1)
    assert torch.equal(converted(x), first) or mode == "train"
    assert not torch.equal(converted(x), first)


def test_the_mean_nests_and_survives_exceptions() -> None:
    model, x = bayesify.convert(SmallResNet()).eval(), image()
    with bayesify.posterior_mean(model):
        with bayesify.posterior_mean(model.layer1), bayesify.posterior_mean(model):
            inner = model(x)
        assert torch.equal(model(x), inner)
        with pytest.raises(KeyError), bayesify.posterior_mean(model):
            raise KeyError
        assert torch.equal(model(x), inner)
    assert not torch.equal(model(x), model(x))
    with bayesify.posterior_mean(model.layer1):
        assert not torch.equal(model(x), model(x))


def test_gradients_in_the_mean_are_the_plain_model_s() -> None:
    model, x = SmallResNet().eval(), image()
    converted = bayesify.convert(model)
    with bayesify.posterior_mean(converted):
        converted(x).square().sum().backward()
    model(x).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter.grad, converted.get_parameter(name).grad)  # type: ignore[arg-type]


# starts


def test_set_posterior_std() -> None:
    model = bayesify.convert(Tangled(), VARIATIONAL_BIAS)
    bayesify.set_posterior_std(model, 0.25)
    for _, layer in bayesify.variational_layers(model):
        for name in layer.means():
            torch.testing.assert_close(layer.std_of(name), torch.full_like(getattr(layer, name), 0.25))
    for wrong in (0, -1.0, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="positive"):
            bayesify.set_posterior_std(model, wrong)
    with pytest.raises(UninitializedLayerError, match="'0' has not seen data"):
        bayesify.set_posterior_std(bayesify.convert(nn.Sequential(nn.LazyLinear(2))), 0.1)


POLICIES = ["flipout", "moped", "scratch", "sparse", VARIATIONAL_BIAS]


@pytest.mark.parametrize("policy", POLICIES, ids=str)
@pytest.mark.parametrize("make", [SmallResNet, Tangled])
def test_a_plain_checkpoint_loads_as_if_it_had_been_there_at_conversion(make: Any, policy: Any) -> None:
    trained = make()
    converted = bayesify.convert(make(), policy)
    bayesify.load_weights(converted, trained.state_dict())
    expected = bayesify.convert(trained, policy).state_dict()
    assert converted.state_dict().keys() == expected.keys()
    for name, value in converted.state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_a_checkpoint_that_does_not_fit_is_refused_whole() -> None:
    model = bayesify.convert(SmallResNet())
    before, given = snapshot(model), SmallResNet().state_dict()
    given["fc.weight"] = torch.zeros(5, 3)
    given["extra"] = given.pop("fc.bias")
    with pytest.raises(UsageError) as caught:
        bayesify.load_weights(model, given)
    for words in ("missing ['fc.bias']", "unexpected ['extra']", "'fc.weight' has shape (5, 3) and should have (5, 4)"):
        assert words in str(caught.value)
    with pytest.raises(UsageError, match="weight_rho"):
        bayesify.load_weights(model, model.state_dict())
    assert snapshot(model)[0] == before[0]


@pytest.mark.parametrize("policy", POLICIES, ids=str)
@pytest.mark.parametrize("way", ["assign", "load_weights"])
def test_converting_on_meta(policy: Any, way: str) -> None:
    trained = Tangled()
    with torch.device("meta"):
        model = Tangled()
    bayesify.convert(model, policy, inplace=True)
    with pytest.raises(UninitializedLayerError, match="'a' is on the meta device"):
        model.kl()  # type: ignore[operator]
    if way == "load_weights":
        bayesify.load_weights(model, trained.state_dict(), assign=True)
    else:
        model.load_state_dict(trained.state_dict(), strict=False, assign=True)
        model.head.weight, model.twin.weight = model.emb.weight, model.a.weight
        bayesify.reset_posterior(model)
    expected = bayesify.convert(trained, policy)
    assert model.head.weight is model.emb.weight
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in expected.named_parameters()]
    for name, value in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    torch.testing.assert_close(model.kl(), expected.kl(), rtol=0, atol=0)  # type: ignore[operator]
    x = tokens()
    with bayesify.posterior_mean(model):
        assert torch.equal(model(x), trained(x))


def test_reset_posterior_keeps_each_parameter_s_own_posterior() -> None:
    """Two layers may share a weight and not a bias, or the other way about."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight, model[2].bias = model[0].weight, model[0].bias
    bayesify.convert(model, VARIATIONAL_BIAS, inplace=True)
    objects = {name: id(value) for name, value in model.named_parameters(remove_duplicate=False)}
    start = copy.deepcopy(model.state_dict())
    bayesify.set_posterior_std(model, 0.5)
    bayesify.reset_posterior(model)
    assert {name: id(value) for name, value in model.named_parameters(remove_duplicate=False)} == objects
    assert all(torch.equal(value, start[name]) for name, value in model.state_dict().items())
    assert model[1].weight_rho is model[0].weight_rho
    assert model[1].bias_rho is not model[0].bias_rho
    assert model[2].bias_rho is model[0].bias_rho
    assert model[2].weight_rho is not model[0].weight_rho


def test_reset_parameters_starts_layers_anew() -> None:
    layer = bayesify.convert(nn.Linear(3, 3), {"prior": {"mean": "pretrained"}})
    bayesify.set_posterior_std(layer, 9.0)
    layer.reset_parameters()
    assert torch.equal(layer.weight_prior_mean, layer.weight)  # type: ignore[arg-type]
    assert layer.weight_std.max() < 1  # type: ignore[operator]


# lazy models


@pytest.mark.parametrize("method", METHODS)
def test_a_lazily_converted_model_is_the_one_that_is_converted_afterwards(method: str) -> None:
    model = nn.Sequential(nn.LazyConv2d(3, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2), nn.Linear(2, 2))
    policy = {"method": method, "bias": "variational"}
    early = bayesify.convert(model, policy)
    with pytest.raises(UninitializedLayerError, match="'0' has not seen data"):
        early.kl()  # type: ignore[operator]
    early = pickle.loads(pickle.dumps(copy.deepcopy(early)))
    early(image())
    late = bayesify.convert(bayesify.revert(early), policy)
    assert [type(each) for each in early] == [type(each) for each in late]
    assert [each._settings for _, each in bayesify.variational_layers(early)] == [
        each._settings for _, each in bayesify.variational_layers(late)
    ]
    assert early.state_dict().keys() == late.state_dict().keys()
    assert all(torch.equal(value, late.state_dict()[name]) for name, value in early.state_dict().items())
    assert [type(each) for each in bayesify.revert(bayesify.convert(model))] == [type(each) for each in model]


def test_a_plain_checkpoint_loads_into_a_lazy_model() -> None:
    trained = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    model = bayesify.convert(nn.Sequential(nn.LazyLinear(3), nn.LazyLinear(2)))
    bayesify.load_weights(model, trained.state_dict())
    model(torch.randn(2, 4))
    expected = bayesify.convert(trained).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


def test_a_lazy_model_has_nothing_to_draw() -> None:
    model = bayesify.convert(nn.Sequential(nn.LazyLinear(2)))
    with pytest.raises(UninitializedLayerError, match="'0' has not seen data yet, so that there is nothing to draw"):
        bayesify.revert(model, "sample", inplace=True)
    assert isinstance(model[0], bayesify.nn.LazyFlipoutLinear)


# memory


def storages(model: nn.Module) -> dict[int, int]:
    found = [each.untyped_storage() for each in [*model.parameters(), *model.buffers()]]
    return {each.data_ptr(): each.nbytes() for each in found}


def alive() -> list[Tensor]:
    gc.collect()
    # exact types: what a compiler traced with and left behind has no memory
    return (each for each in gc.get_objects() if type(each) in (Tensor, nn.Parameter) and not each.is_meta)


@pytest.mark.parametrize(("mean", "copies"), [("zero", 1), ("pretrained", 2)])
def test_a_big_model_converts_in_place_without_another_copy(mean: str, copies: int) -> None:
    model = nn.Sequential(*(nn.Linear(1024, 1024) for _ in range(16)), nn.Embedding(1024, 1024))
    weights = storages(model)
    before = {each.untyped_storage().data_ptr() for each in alive()}
    bayesify.convert(model, {"method": "flipout", "prior": {"mean": mean, "std": 1.0}}, inplace=True)
    after = storages(model)
    assert weights.items() <= after.items()
    assert sum(after.values()) - sum(weights.values()) == copies * 16 * 4 * 1024**2
    big = (each.untyped_storage() for each in alive() if each.untyped_storage().nbytes() >= 4 * 1024**2)
    left = {each.data_ptr() for each in big} - before
    assert left <= after.keys()


def test_conversion_itself_peaks_at_little_more_than_what_it_adds(monkeypatch: pytest.MonkeyPatch) -> None:
    """All big tensors that are made on the way are counted while they live."""
    model = nn.Sequential(*(nn.Linear(1024, 1024) for _ in range(4)))
    peaks: list[int] = []
    original = surgery.posterior_tensors

    def counting(*args: Any) -> Any:
        made = original(*args)
        peaks.append(
            sum({each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in alive()}.values())
        )
        return made

    monkeypatch.setattr(surgery, "posterior_tensors", counting)
    bayesify.convert(model, inplace=True)
    gc.collect()
    final = sum({each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in alive()}.values())
    assert max(peaks) <= final + 4 * 1024**2
