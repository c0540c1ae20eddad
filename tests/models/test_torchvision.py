"""Real architectures, whole: they convert, keep their function, are noisy everywhere, train, compile and checkpoint."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import bayesify
from bayesify.errors import WrappedModelError
from tests.nets import Block, SmallResNet, image

METHODS = pytest.mark.parametrize("method", ["flipout", "lrt"])


@pytest.fixture(autouse=True, scope="module")
def _libraries(request: pytest.FixtureRequest) -> None:
    """timm and transformers import torchvision where it is, and fail where it does not import."""
    if find_spec("torchvision"):
        request.getfixturevalue("vision")


def torchvision(make: Callable[[Any], nn.Module]) -> Callable[[], nn.Module]:
    """`make` is given torchvision.models."""

    def made() -> nn.Module:
        models = pytest.importorskip("torchvision.models")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return make(models)

    return made


def small_vit(models: Any) -> nn.Module:
    """torchvision's ViT, two blocks of it."""
    sizes = {"image_size": 32, "patch_size": 16, "num_layers": 2, "num_heads": 2, "hidden_dim": 32, "mlp_dim": 64}
    return models.VisionTransformer(**sizes, num_classes=7)  # type: ignore[no-any-return]


def thin_densenet(models: Any) -> nn.Module:
    """densenet121's layers, thin ones."""
    return models.DenseNet(4, (6, 12, 24, 16), 8, num_classes=7)  # type: ignore[no-any-return]


def timm(name: str, **options: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        library = pytest.importorskip("timm")
        return library.create_model(name, pretrained=False, num_classes=7, **options)  # type: ignore[no-any-return]

    return make


class UNet(nn.Module):
    """Down, up by a transposed convolution, and across."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.down = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 8, 3, stride=2, padding=1)
        self.inner = nn.Sequential(nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding="same", groups=8))
        self.up = nn.ConvTranspose2d(8, 4, 3, stride=2, padding=1)
        self.leave = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        across = torch.relu(self.enter(x))
        up = self.up(self.inner(self.down(across)), output_size=across.shape[-2:])
        return {"mask": self.leave(torch.cat([up, across], 1))}


def bert() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, num_labels=3
    )
    return transformers.BertForSequenceClassification(config)  # type: ignore[no-any-return]


def ids() -> Tensor:
    return torch.randint(50, (2, 6))


def pixels(size: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(2, 3, size, size)


# name: (model, input, how many layers convert)
ARCHITECTURES: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor], int]] = {
    "resnet18": (torchvision(lambda models: models.resnet18(num_classes=7)), pixels(32), 21),
    "mobilenet_v2": (torchvision(lambda models: models.mobilenet_v2(num_classes=7)), pixels(32), 53),
    "vgg11's features": (torchvision(lambda models: models.vgg11(init_weights=False).features), pixels(32), 8),
    "densenet121": (torchvision(thin_densenet), pixels(32), 121),
    "vit": (torchvision(small_vit), pixels(32), 10),
    "timm vit": (timm("vit_tiny_patch16_224", img_size=32, depth=2), pixels(32), 10),
    "timm efficientnet": (timm("efficientnet_b0"), pixels(32), 82),
    "timm convnext": (timm("convnext_atto", depths=(1, 1, 1, 1), dims=(8, 16, 32, 64)), pixels(32), 17),
    "unet": (UNet, pixels(9), 5),
    "bert": (bert, ids, 14),
}


def main(output: Any) -> Tensor:
    """The output's one tensor, whatever it comes in."""
    if isinstance(output, Tensor):
        return output
    return output["mask"] if "mask" in output else output["logits"]  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("name", "method"), [(name, method) for name in ARCHITECTURES for method in ("flipout", "lrt")]
)
def test_architecture(name: str, method: str) -> None:
    make, data, count = ARCHITECTURES[name]
    model, x = make().eval(), data()
    expected = model(x)
    made = bayesify.plan(model, method)
    bayesify.convert(model, method, inplace=True)
    assert made.totals["converts"] == count == len(list(bayesify.variational_layers(model)))
    with bayesify.posterior_mean(model):
        quiet = model(x)
    assert type(quiet) is type(expected)
    assert torch.equal(main(quiet), main(expected))
    output = main(model(x))
    assert output.isfinite().all()
    assert not torch.equal(output, main(model(x)))
    output.square().sum().backward()
    for layer_name, layer in bayesify.variational_layers(model):
        assert all(layer.scale_of(mean).grad is not None for mean in layer.means()), layer_name  # type: ignore[union-attr]
    total: Any = model.kl
    total.reset()
    model(x)
    assert total(reached=True) == total()


def test_attention_rows_of_a_vision_transformer() -> None:
    with torch.device("meta"):
        model = torchvision(lambda models: models.vit_b_16(image_size=32))()
    made = bayesify.plan(model)
    attention = [row.becomes for row in made.converting() if "self_attention" in row.name]
    assert sorted(attention) == ["FlipoutMultiheadAttention"] * 12 + ["FlipoutOutProjection"] * 12
    assert not any("self_attention" in row.name for row in made.rows if row.verb == "blocked")


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_a_trained_like_network_survives_its_default_noise(name: str) -> None:
    """Not NaN, not saturated: the spread over draws stays below the spread over inputs."""
    make, _, _ = ARCHITECTURES[name]
    model = bayesify.convert(make().eval())
    x = torch.randn(8, 3, 32, 32)
    with torch.no_grad():
        outputs = torch.stack([model(x) for _ in range(8)])
    assert outputs.std(0).mean() < 2 * outputs.mean(0).std(0).mean()


# the real compiler takes half a minute a network: it compiles one, and the other is traced only
@pytest.mark.parametrize(("method", "backend"), [("flipout", "inductor"), ("lrt", "aot_eager")])
def test_compiled_whole_with_its_kl(method: str, backend: str) -> None:
    """In one graph: fresh noise each step, and gradients for everything."""
    model = bayesify.convert(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)), method)
    kl: Any = model.kl
    step: Any = torch.compile(lambda x: (model(x).square().mean(), kl()), fullgraph=True, backend=backend)
    x = image()
    loss, total = step(x)
    again, _ = step(x)
    assert loss != again
    torch.testing.assert_close(total, kl())
    (loss + total / 10).backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


@METHODS
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_a_checkpointed_block(method: str, use_reentrant: bool) -> None:
    block, x = bayesify.convert(Block(4).eval(), method), torch.randn(2, 4, 5, 5, requires_grad=True)
    results = []
    for run in (block, lambda x: checkpoint(block, x, use_reentrant=use_reentrant)):
        block.zero_grad()
        torch.manual_seed(3)
        output = run(x)
        (output.square().sum() + block.kl()).backward()  # type: ignore[operator]
        results.append([output.detach(), *(parameter.grad.clone() for parameter in block.parameters())])  # type: ignore[union-attr]
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


@METHODS
def test_vmap_over_draws_by_functional_call(method: str) -> None:
    model, x = bayesify.convert(SmallResNet().eval(), method), image()
    parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())

    def call(parameters: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(model, {**parameters, **buffers}, (x,))  # type: ignore[no-any-return]

    draws = torch.func.vmap(lambda _: call(parameters), randomness="different")(torch.empty(6))
    assert draws.shape == (6, 4, 5)
    assert (draws.std(0) > 0).all()
    stacked = {name: torch.stack([value, value + 1]).detach() for name, value in parameters.items()}
    assert torch.func.vmap(call, randomness="different")(stacked).shape == (2, 4, 5)
    gradients: Any = torch.func.vmap(torch.func.grad(lambda each: call(each).square().sum()), randomness="different")
    assert (gradients(stacked)["fc.weight_rho"].abs().sum((1, 2)) > 0).all()


def test_data_parallel_comes_after() -> None:
    with pytest.raises(WrappedModelError, match=r"convert model\.module"):
        bayesify.convert(nn.DataParallel(SmallResNet()))
    wrapped = nn.DataParallel(bayesify.convert(SmallResNet()))
    assert wrapped(image()).shape == (4, 5)
    assert bayesify.kl(wrapped) == wrapped.module.kl()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@METHODS
def test_other_float_types(method: str, dtype: torch.dtype) -> None:
    model, x = SmallResNet().eval().to(dtype), image().to(dtype)
    expected = model(x)
    converted = bayesify.convert(model, {"method": method, "bias": "variational"})
    with bayesify.posterior_mean(converted):
        assert torch.equal(converted(x), expected)
    kl: Any = converted.kl
    (converted(x).sum() + kl()).backward()
    assert kl().dtype is (torch.float64 if dtype is torch.float64 else torch.float32)
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in converted.parameters())
    scales = {id(layer.scale_of(mean)) for _, layer in bayesify.variational_layers(converted) for mean in layer.means()}
    wide = torch.float64 if dtype is torch.float64 else torch.float32  # in half precision a scale would not move
    for parameter in converted.parameters():
        assert parameter.dtype is (wide if id(parameter) in scales else dtype)


def test_channels_last_stays() -> None:
    plain: Any = SmallResNet()
    policy = {"prior": {"mean": "pretrained", "std": 1.0}}
    model = bayesify.convert(plain.to(memory_format=torch.channels_last).eval(), policy)
    x = image().to(memory_format=torch.channels_last)
    assert model.conv1(x).is_contiguous(memory_format=torch.channels_last)
    for tensor in (model.conv1.weight, model.conv1.weight_rho, model.conv1.weight_prior_mean):
        assert tensor.is_contiguous(memory_format=torch.channels_last)


@METHODS
def test_moving_a_converted_model(method: str) -> None:
    model = bayesify.convert(SmallResNet().eval(), method)
    before = model.kl()  # type: ignore[operator]
    model.double()
    assert model(image().double()).dtype is torch.float64
    torch.testing.assert_close(model.kl(), before.double(), rtol=1e-5, atol=1e-5)  # type: ignore[operator]
    model.to("meta")
    assert model(image().double().to("meta")).shape == (4, 5)
