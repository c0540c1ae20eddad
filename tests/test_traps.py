"""The known traps of rewriting models, one test each: what would turn noise off, or count it wrong, silently."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.utils.checkpoint import checkpoint

import bayesify
from bayesify.errors import AlreadyVariationalError, UninitializedLayerError, UsageError, WrappedModelError
from bayesify.nn.registry import plain_classes
from tests.nets import SmallResNet, image

METHODS = pytest.mark.parametrize("method", ["flipout", "lrt"])


def reasons(model: nn.Module) -> dict[str, str]:
    return {row.name: str(row.reason) for row in bayesify.plan(model).rows if row.verb == "blocked"}


def differs(model: nn.Module, *inputs: Any, **kwargs: Any) -> bool:
    """Whether two passes differ: False where something runs past the noise."""
    with torch.no_grad():
        return not torch.equal(model(*inputs, **kwargs), model(*inputs, **kwargs))


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
    for layer in model.layers:
        assert list(layer._forward_pre_hooks.values()) == [bayesify.keep_unfused]
        layer._forward_pre_hooks.clear()
        for each in (layer.self_attn, layer.self_attn.out_proj, layer.linear1, layer.linear2):
            each._forward_hooks.clear()
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


def test_04_tied_parameters() -> None:
    model: Any = nn.ModuleDict(
        {"emb": nn.Embedding(6, 4), "a": nn.Linear(4, 4), "c": nn.Linear(4, 4), "head": nn.Linear(4, 6)}
    )
    model.head.weight, model.c.weight = model.emb.weight, model.a.weight  # type: ignore[union-attr, assignment]
    model = bayesify.convert(model)
    assert model.head.weight is model.emb.weight
    assert model.c.weight is model.a.weight
    assert model.c.weight_rho is model.a.weight_rho
    hand = model.a.kl_divergence() + model.head.kl_divergence()
    torch.testing.assert_close(model.kl(), hand)
    assert model.kl.by_layer().keys() == {"a", "head"}


@pytest.mark.parametrize("name", ["a", "b"])
def test_05_modules_registered_twice(name: str) -> None:
    model = nn.ModuleDict({"a": nn.Linear(3, 3), "other": nn.Linear(3, 3)})
    model["b"] = model["a"]
    converted: Any = bayesify.convert(model, {"method": "flipout", "rules": [{"targets": [name]}]})
    assert converted.a is converted.b
    assert differs(converted.a, torch.ones(2, 3))
    assert converted.kl.by_layer().keys() == {"a"}
    assert type(converted.other) is nn.Linear


def test_06_modules_in_plain_lists() -> None:
    model: Any = nn.Sequential(nn.Linear(3, 3))
    model.listed, model.closure = [model[0]], lambda x, layer=model[0]: layer(x)
    bayesify.convert(model, inplace=True)
    assert differs(model.listed[0], torch.ones(2, 3))
    assert not torch.equal(model.closure(torch.ones(2, 3)), model.closure(torch.ones(2, 3)))
    model = nn.Sequential(nn.Linear(3, 3))
    model.listed = [nn.Linear(3, 3)]
    assert "not registered" in reasons(model)["listed[0]"]


@pytest.mark.parametrize(
    "wrap", [parametrizations.weight_norm, parametrizations.spectral_norm, parametrizations.orthogonal]
)
def test_07_parametrizations(wrap: Any) -> None:
    plain, x = nn.Sequential(wrap(nn.Linear(3, 3)), nn.Linear(3, 3)).eval(), torch.ones(2, 3)
    model = bayesify.convert(plain)
    with bayesify.posterior_mean(model):
        assert torch.equal(model(x), plain(x))
    assert differs(model[0], x)
    assert type(bayesify.revert(model)[0]) is type(plain[0])


@pytest.mark.parametrize("change", ["weight_norm", "spectral_norm", "prune"])
def test_08_weights_that_old_hooks_compute(change: str) -> None:
    model, x = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)).eval(), torch.ones(2, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        prune.l1_unstructured(model[0], "weight", 0.5) if change == "prune" else getattr(nn.utils, change)(model[0])
    before = model(x)
    bayesify.convert(model, inplace=True)
    with bayesify.posterior_mean(model):
        assert torch.equal(model(x), before)
    assert differs(model[0], x)


class Scaled(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * F.linear(input, self.weight, self.bias)


class Inherits(nn.Linear):
    pass


def test_09_subclasses() -> None:
    model = nn.Sequential(Scaled(2, 2), Inherits(2, 2), nn.Linear(2, 2))
    converted = bayesify.convert(model)
    for at, cls in enumerate((Scaled, Inherits)):
        assert isinstance(converted[at], cls)
        assert differs(converted[at], torch.ones(1, 2))
        assert type(pickle.loads(pickle.dumps(converted[at]))) is type(converted[at])


def test_10_the_transposed_linear_of_transformers(request: pytest.FixtureRequest) -> None:
    if find_spec("torchvision"):
        request.getfixturevalue("vision")
    plain, x = pytest.importorskip("transformers.pytorch_utils").Conv1D(2, 3), torch.ones(2, 3)
    model = bayesify.convert(plain)
    with bayesify.posterior_mean(model):
        assert torch.equal(model(x), plain(x))
    assert differs(model, x)


def test_11_quantized_weights() -> None:
    class Packed(Tensor):
        pass

    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0]._parameters["weight"] = torch.zeros(2, 2).as_subclass(Packed)  # type: ignore[assignment]
    assert "Packed" in reasons(model)["0"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dynamic = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(2, 2)), {nn.Linear})
    assert "quantized" in reasons(nn.Sequential(dynamic, nn.Linear(2, 2)))["0.0"]


def test_12_adapters() -> None:
    class Adapter(nn.Module):
        adapter_layer_names = ("lora_A",)

        def __init__(self) -> None:
            super().__init__()
            self.base_layer, self.lora_A = nn.Linear(2, 2), nn.ModuleDict({"default": nn.Linear(2, 2)})

        def forward(self, x: Tensor) -> Tensor:
            return self.base_layer(x) + self.lora_A["default"](x)  # type: ignore[no-any-return]

    model = nn.Sequential(Adapter(), nn.Linear(2, 2))
    assert reasons(model).keys() == {"0.base_layer"}
    assert "merge_and_unload" in reasons(model)["0.base_layer"]
    assert [name for name, _ in bayesify.variational_layers(bayesify.convert(model))] == ["0.lora_A.default", "1"]


LAZY: list[Any] = [cls for cls in plain_classes() if cls.__name__.startswith("Lazy")]


def lazy_case(cls: Any) -> tuple[nn.Module, Tensor]:
    if cls is nn.LazyLinear:
        return cls(3), torch.randn(2, 4)
    return cls(3, 2), torch.randn(2, 4, *[5] * int(cls.__name__[-2]))


@METHODS
@pytest.mark.parametrize("cls", LAZY, ids=lambda cls: cls.__name__)
def test_13_lazy_layers_stay_variational(cls: Any, method: str) -> None:
    layer, x = lazy_case(cls)
    layer = copy.deepcopy(bayesify.convert(layer, method))
    assert differs(layer, x)
    name = cls.cls_to_become.__name__
    assert type(layer).__name__ == ("Flipout" if method == "flipout" else "LRT") + name
    assert layer.weight_rho.shape == layer.weight.shape  # type: ignore[union-attr]
    assert not layer._forward_pre_hooks


@pytest.mark.parametrize("cls", LAZY, ids=lambda cls: cls.__name__)
def test_14_a_loaded_weight_survives_a_lazy_first_batch(cls: Any) -> None:
    trained, x = lazy_case(cls)
    trained(x)
    layer, _ = lazy_case(cls)
    layer = bayesify.convert(layer)
    layer.load_state_dict(trained.state_dict(), strict=False)
    with bayesify.posterior_mean(layer):
        assert torch.equal(layer(x), trained(x))
    assert torch.equal(layer.weight, trained.weight)  # type: ignore[arg-type]
    assert torch.equal(layer.weight_prior_mean, trained.weight)  # type: ignore[arg-type]
    bayesify.set_posterior_std(layer, 0.5)
    again = bayesify.convert(lazy_case(cls)[0])
    again.load_state_dict(layer.state_dict())
    again(x)
    assert all(torch.equal(value, layer.state_dict()[name]) for name, value in again.state_dict().items())


def test_15_kl_before_the_first_batch() -> None:
    model = bayesify.convert(nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.LazyLinear(3))))
    for call in (model.kl, model.kl.by_layer):  # type: ignore[union-attr]
        with pytest.raises(UninitializedLayerError, match=r"'1\.0' has not seen data"):
            call()  # type: ignore[operator]
    model(torch.randn(2, 4))
    assert model.kl() > 0  # type: ignore[operator]


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    meeting = tmp_path_factory.mktemp("group") / "file"
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("wrap", [nn.DataParallel, nn.parallel.DistributedDataParallel, torch.compile])
def test_16_wrapped_models(wrap: Any) -> None:
    wrapped = wrap(SmallResNet())
    with pytest.raises(WrappedModelError, match=r"convert model\.(module|_orig_mod), then (wrap|compile) it again"):
        bayesify.convert(wrapped)
    with pytest.raises(TypeError):
        bayesify.convert(nn.Sequential(wrapped), inplace=True)


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("find_unused_parameters", [False, True])
def test_17_the_kl_outside_of_ddp_s_forward(find_unused_parameters: bool) -> None:
    model = bayesify.convert(nn.Sequential(nn.Linear(3, 3)))
    wrapped = nn.parallel.DistributedDataParallel(model, find_unused_parameters=find_unused_parameters)
    x = torch.randn(4, 3)
    torch.manual_seed(1)
    (wrapped(x).square().sum() + model.kl()).backward()  # type: ignore[operator]
    got = [each.grad.clone() for each in model.parameters()]  # type: ignore[union-attr]
    model.zero_grad()
    torch.manual_seed(1)
    (model(x).square().sum() + model.kl()).backward()  # type: ignore[operator]
    for mine, each in zip(got, model.parameters(), strict=True):
        torch.testing.assert_close(mine, each.grad)


@pytest.mark.usefixtures("group")
def test_18_sharded_models() -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (1,))
    model = bayesify.convert(SmallResNet())
    whole, x = model.kl(), image()  # type: ignore[operator]
    for layer in (model.conv1, model.fc, model):
        fully_shard(layer, mesh=mesh)
    assert isinstance(model.fc, bayesify.nn.FlipoutLinear)
    torch.testing.assert_close(model.kl(), whole)  # type: ignore[operator]
    (model(x).sum() + model.kl()).backward()  # type: ignore[operator]
    assert all(each.grad is not None for each in model.parameters())
    plain = SmallResNet()
    fully_shard(plain, mesh=mesh)
    with pytest.raises(WrappedModelError, match="convert the model first, then shard it"):
        bayesify.convert(plain, inplace=True)


def test_19_programs_and_graphs() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted: Any = torch.jit.script(nn.Linear(2, 2))
    with pytest.raises(UsageError, match="TorchScript"):
        bayesify.convert(scripted)
    assert "TorchScript" in reasons(nn.Sequential(scripted, nn.Linear(2, 2)))["0"]
    exported = torch.export.export(nn.Linear(2, 2), (torch.zeros(1, 2),))
    program: Any = bayesify.convert(exported)  # type: ignore[type-var]
    assert differs(program, torch.ones(1, 2))
    with pytest.raises(UsageError, match="in place"):
        bayesify.convert(exported, inplace=True)  # type: ignore[type-var]
    graph = bayesify.convert(torch.fx.symbolic_trace(nn.Sequential(nn.Linear(2, 2))))
    assert differs(graph, torch.ones(1, 2))
    assert bayesify.kl(copy.deepcopy(graph)) == graph.kl()  # type: ignore[operator]


def test_20_meta() -> None:
    with torch.device("meta"):
        model = SmallResNet()
    bayesify.convert(model, inplace=True).to_empty(device="cpu")
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    for _, layer in bayesify.variational_layers(model):
        assert layer.weight_std.isfinite().all()
        assert layer.weight_std.max() < 1
        assert torch.equal(layer.weight_prior_mean, layer.weight)  # type: ignore[arg-type]
    assert model.kl().isfinite()  # type: ignore[operator]


@METHODS
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_21_checkpointing_replays_the_noise(method: str, use_reentrant: bool) -> None:
    model = bayesify.convert(SmallResNet(), method)
    x = image().requires_grad_()

    def gradients(wrapped: bool) -> list[Tensor]:
        model.zero_grad()
        model.kl.reset()  # type: ignore[union-attr]
        torch.manual_seed(3)
        output = checkpoint(model, x, use_reentrant=use_reentrant) if wrapped else model(x)
        (output.square().sum() + model.kl(reached=True)).backward()  # type: ignore[operator]
        return [each.grad.clone() for each in model.parameters()]  # type: ignore[union-attr]

    for ours, theirs in zip(gradients(True), gradients(False), strict=True):
        torch.testing.assert_close(ours, theirs)


@METHODS
def test_22_compile(method: str) -> None:
    model, x = bayesify.convert(SmallResNet().eval(), method), image()
    step: Any = torch.compile(
        lambda x: model(x).square().mean() + model.kl(reached=True), fullgraph=True, backend="aot_eager"
    )  # type: ignore[operator]
    first, second = step(x), step(x)
    first.backward()
    assert not torch.equal(first, second)
    assert all(each.grad is not None for each in model.parameters())
    with bayesify.posterior_mean(model):
        assert torch.equal(step(x), step(x))
    assert not torch.equal(step(x), step(x))


class Leaves(torch.fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, bayesify.nn.Variational) or super().is_leaf_module(m, module_qualified_name)


@METHODS
def test_23_tracing_and_export(method: str) -> None:
    model, x = bayesify.convert(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), method), torch.ones(3, 2)
    graph = Leaves().trace(model)
    assert [node.target for node in graph.nodes if node.op == "call_module"] == ["0", "1"]
    assert differs(torch.fx.GraphModule(model, graph), x)
    assert differs(torch.export.export(model, (x,)).module(), x)


@METHODS
def test_24_vmap(method: str) -> None:
    model, x = bayesify.convert(SmallResNet(), method).eval(), image()
    with torch.no_grad():
        different = torch.func.vmap(lambda _: model(x), randomness="different")(torch.empty(3))
        same = torch.func.vmap(lambda _: model(x), randomness="same")(torch.empty(3))
    assert not torch.equal(different[0], different[1])
    assert torch.equal(same[0], same[1])


@METHODS
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_25_autocast(method: str, dtype: torch.dtype) -> None:
    model = bayesify.convert(nn.Sequential(nn.Linear(64, 8)), method)
    bayesify.set_posterior_std(model, 1e-4)
    x = torch.full((512, 64), 1e-2).requires_grad_()
    with torch.autocast("cpu", dtype):
        output = model(x)
    assert output.dtype is dtype
    output.float().sum().backward()
    for each in (x, *model.parameters()):
        assert each.grad is not None
        assert each.grad.isfinite().all()
    assert x.grad.abs().sum() > 0  # type: ignore[union-attr]
    assert model[0].weight_rho.grad.abs().sum() > 0  # type: ignore[union-attr]


def test_26_copies() -> None:
    model = bayesify.convert(SmallResNet())
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for clone in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(file, weights_only=False)):
        assert clone.kl.root is clone
        bayesify.set_posterior_std(clone, 0.5)
        assert clone.kl() != model.kl()  # type: ignore[operator]
        assert type(clone.fc) is type(model.fc)


def test_27_keys_of_the_state_dict() -> None:
    plain = SmallResNet()
    model = bayesify.convert(plain)
    missing, unexpected = model.load_state_dict(plain.state_dict(), strict=False)
    assert {name.rpartition(".weight_")[2] for name in missing} == {"rho", "prior_mean"}
    assert not unexpected
    missing, unexpected = plain.load_state_dict(model.state_dict(), strict=False)
    assert not missing
    with pytest.raises(RuntimeError, match="weight_rho"):
        model.load_state_dict(plain.state_dict())
    bayesify.load_weights(model, plain.state_dict())


def test_28_safetensors_and_shared_tensors(tmp_path: Any) -> None:
    from safetensors.torch import load_model, save_model

    def make() -> nn.Module:
        model = nn.ModuleDict({"fc": nn.Linear(3, 3), "twin": nn.Linear(3, 3)})
        model["again"], model["twin"].weight = model["fc"], model["fc"].weight  # type: ignore[assignment]
        return bayesify.convert(model)

    model, other = make(), make()
    bayesify.set_posterior_std(model, 0.3)
    save_model(model, str(tmp_path / "model.safetensors"))
    load_model(other, str(tmp_path / "model.safetensors"))
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items())
    assert other.twin.weight_rho is other.fc.weight_rho  # type: ignore[union-attr]


def test_29_averages_of_weights_come_after() -> None:
    from torch.optim.swa_utils import AveragedModel

    plain = SmallResNet()
    with pytest.raises(WrappedModelError, match="average anew"):
        bayesify.convert(AveragedModel(plain))
    assert "verages" in str(bayesify.convert.__doc__)
    model = bayesify.convert(plain)
    average = AveragedModel(model)
    bayesify.set_posterior_std(model, 0.5)
    average.update_parameters(model)
    for ours, theirs in zip(average.module.parameters(), model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_30_an_optimizer_made_before_does_not_know_the_scales() -> None:
    model = SmallResNet()
    stepper = torch.optim.SGD(model.parameters(), lr=0.1)
    bayesify.convert(model, inplace=True)
    bayesify.extend_optimizer(stepper, model)
    assert sum(len(group["params"]) for group in stepper.param_groups) == len(list(model.parameters()))


def test_31_frozen_layers() -> None:
    model = SmallResNet()
    model.fc.requires_grad_(False)
    assert type(bayesify.convert(model).fc) is nn.Linear
    converted = bayesify.convert(model, {"method": "flipout", "frozen": "convert"})
    assert [each.requires_grad for each in converted.fc.parameters()] == [False] * 3
    assert converted.layer1[0].conv1.weight_rho.requires_grad  # type: ignore[union-attr]


def test_32_names_that_are_taken() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].register_buffer("weight_rho", torch.zeros(1))
    assert "'weight_rho' already" in reasons(model)["0"]
    assert torch.equal(bayesify.convert(model)[0].weight_rho, torch.zeros(1))  # type: ignore[arg-type]


@METHODS
def test_33_a_weight_resized_after_conversion(method: str) -> None:
    layer = bayesify.convert(nn.Linear(2, 3), method)
    layer.weight = nn.Parameter(torch.zeros(5, 2))
    layer.bias = nn.Parameter(torch.zeros(5))
    with pytest.raises(RuntimeError, match="resize first, then convert"):
        layer(torch.ones(1, 2))


@METHODS
def test_34_output_size_and_every_other_option(method: str) -> None:
    plain = nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, groups=2, dilation=2)
    layer, x = bayesify.convert(plain, method), torch.randn(2, 4, 5, 5)
    with bayesify.posterior_mean(layer):
        assert torch.equal(layer(x, output_size=[12, 12]), plain(x, output_size=[12, 12]))
    assert layer(x, [12, 12]).shape == (2, 6, 12, 12)
    padded = nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular")
    layer = bayesify.convert(padded, method)
    bayesify.set_posterior_std(layer, 1e-8)
    torch.testing.assert_close(layer(x), padded(x))


def test_35_converting_twice() -> None:
    for method in ("flipout", "lrt"):
        with pytest.raises(AlreadyVariationalError, match="revert"):
            bayesify.convert(bayesify.convert(SmallResNet()), method)


@METHODS
def test_36_the_root_may_be_the_layer(method: str) -> None:
    layer = nn.Linear(3, 3)
    assert bayesify.convert(layer, method, inplace=True) is layer
    assert differs(layer, torch.ones(1, 3))
    assert layer.kl() > 0  # type: ignore[operator]
    assert getattr(bayesify, method)(nn.Linear(2, 2)).kl() > 0


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
        plain.layers[0].register_forward_pre_hook(bayesify.keep_unfused)
        plain(x)
    assert calls
