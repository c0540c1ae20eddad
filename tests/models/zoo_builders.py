"""How the zoo builds models of each library, in small, and what it calls them with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn


def image(size: int = 32, channels: int = 3) -> Callable[[], tuple[Tensor]]:
    return lambda: (torch.randn(2, channels, size, size),)


def words(*names: str) -> Callable[[], dict[str, Tensor]]:
    """Token ids under these names."""
    return lambda: {name: torch.randint(3, 50, (2, 8)) for name in names or ("input_ids",)}


def torchvision(name: str, **options: Any) -> Callable[[], nn.Module]:
    """A class or function of torchvision.models, by its dotted name there."""

    def make() -> nn.Module:
        found: Any = pytest.importorskip("torchvision").models
        for part in name.split("."):
            found = getattr(found, part)
        return found(**options)  # type: ignore[no-any-return]

    return make


def timm(name: str, **options: Any) -> Callable[[], nn.Module]:
    """A registered model of timm; or, by a dotted name, a class of timm.models."""

    def make() -> nn.Module:
        library = pytest.importorskip("timm")
        if "." not in name:
            return library.create_model(name, pretrained=False, num_classes=7, **options)  # type: ignore[no-any-return]
        module, cls = name.split(".")
        return getattr(getattr(library.models, module), cls)(num_classes=7, **options)  # type: ignore[no-any-return]

    return make


SMALL = {
    "vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
    "max_position_embeddings": 32, "num_labels": 3, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "use_cache": False,
}  # fmt: skip


def transformers(name: str, **options: Any) -> Callable[[], nn.Module]:
    """A model class of transformers, its configuration the small one but for `options`."""

    def make() -> nn.Module:
        cls: Any = getattr(pytest.importorskip("transformers"), name)
        kept = {key: value for key, value in (SMALL | options).items() if value is not None}
        return cls(cls.config_class(**kept))  # type: ignore[no-any-return]

    return make


def diffusers(name: str, **options: Any) -> Callable[[], nn.Module]:
    return lambda: getattr(pytest.importorskip("diffusers"), name)(**options)


class LanguageModel(nn.Module):
    """torch's example of one: a look-up, an LSTM over (sequence, batch), a decoder."""

    def __init__(self, words: int = 60, width: int = 16, tied: bool = False) -> None:
        super().__init__()
        self.encoder, self.rnn = nn.Embedding(words, width), nn.LSTM(width, width, 2)
        self.decoder = nn.Linear(width, words)
        if tied:
            self.decoder.weight = self.encoder.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.decoder(self.rnn(self.encoder(tokens))[0])  # type: ignore[no-any-return]


class Tagger(nn.Module):
    """A bidirectional GRU over packed sequences."""

    def __init__(self) -> None:
        super().__init__()
        self.look_up, self.head = nn.Embedding(60, 16), nn.Linear(32, 5)
        self.rnn = nn.GRU(16, 16, batch_first=True, bidirectional=True)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        pack, unpack = nn.utils.rnn.pack_padded_sequence, nn.utils.rnn.pad_packed_sequence
        packed = pack(self.look_up(tokens), lengths, batch_first=True)
        return self.head(unpack(self.rnn(packed)[0], batch_first=True)[0])  # type: ignore[no-any-return]


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


def residual() -> nn.Module:
    """ResNet-10: one block of ResNet-18's at each width."""
    models = pytest.importorskip("torchvision").models
    return models.ResNet(models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=7)  # type: ignore[no-any-return]


def video_residual() -> nn.Module:
    """R3D, one stage of it: its convolutions are subclasses of nn.Conv3d."""
    parts = pytest.importorskip("torchvision").models.video.resnet
    stage = [parts.BasicBlock(16, 16, parts.Conv3DSimple) for _ in range(2)]
    head = nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(16, 7)
    return nn.Sequential(nn.Conv3d(3, 16, 3, padding=1), *stage, *head)


def standardized_resnet() -> nn.Module:
    """BiT, with timm's convolutions that standardize their weights."""
    library = pytest.importorskip("timm")
    sizes = {"layers": (1, 1), "channels": (128, 128), "stem_chs": 32, "num_classes": 7}
    return library.models.resnetv2.ResNetV2(**sizes, conv_layer=library.layers.StdConv2dSame)  # type: ignore[no-any-return]


SWIN: dict[str, Any] = {
    "patch_size": [2, 2], "embed_dim": 8, "depths": [2, 1], "num_heads": [2, 2], "window_size": [2, 2],
    "num_classes": 7,
}  # fmt: skip


def swin_v2() -> nn.Module:
    parts = pytest.importorskip("torchvision").models.swin_transformer
    blocks = {"block": parts.SwinTransformerBlockV2, "downsample_layer": parts.PatchMergingV2}
    return parts.SwinTransformer(**SWIN, **blocks)  # type: ignore[no-any-return]


def gated_mlp() -> nn.Module:
    parts = pytest.importorskip("timm").models.mlp_mixer
    blocks = {"block_layer": parts.SpatialGatingBlock, "mlp_layer": parts.GatedMlp, "mlp_ratio": 2}
    return parts.MlpMixer(7, 32, embed_dim=16, num_blocks=2, **blocks)  # type: ignore[no-any-return]


def unet(name: str = "UNet2DModel", **options: Any) -> Callable[[], nn.Module]:
    sizes = {"sample_size": 8, "layers_per_block": 1, "block_out_channels": (8, 16), "norm_num_groups": 4}
    return diffusers(name, **sizes | options)


def speech() -> dict[str, Tensor]:
    return {"input_values": torch.randn(2, 400)}


def pixels(size: int = 32, **more: Callable[[], Tensor]) -> Callable[[], dict[str, Tensor]]:
    return lambda: {"pixel_values": torch.randn(2, 3, size, size), **{name: make() for name, make in more.items()}}


def tokens() -> Tensor:
    return torch.randint(3, 50, (2, 8))


def latents(channels: int = 3, called: str = "sample", **more: tuple[int, ...] | int) -> Callable[[], dict[str, Any]]:
    """What a diffusion model denoises, and what else it is given: by shape, or one number for each example."""

    def made(shape: tuple[int, ...] | int) -> Tensor:
        return torch.randn(shape) if isinstance(shape, tuple) else torch.tensor([shape, shape + 1])

    return lambda: {name: made(shape) for name, shape in {called: (2, channels, 8, 8), "timestep": 3, **more}.items()}


def time_series() -> dict[str, Tensor]:
    times = {"past": torch.randn(2, 5), "future": torch.randn(2, 3)}
    values = {f"{when}_values": time for when, time in times.items()}
    features = {f"{when}_time_features": torch.randn(*time.shape, 1) for when, time in times.items()}
    return values | features | {"past_observed_mask": torch.ones(2, 5)}
