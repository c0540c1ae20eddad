"""The plain models that `scripts/benchmark` measures, each with the shape of one example."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch.nn.functional as F
from demo_net import Block
from torch import Tensor, nn


def resnet20() -> nn.Module:
    widths = [16, 16, 16, 16, 32, 32, 32, 64, 64, 64]
    blocks = [Block(a, b, 1 + (a != b)) for a, b in pairwise(widths)]
    stem = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


class EncoderBlock(nn.Module):
    """A pre-norm transformer block whose products are Linears."""

    def __init__(self, width: int = 128, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.qkv(self.norm1(x)).chunk(3, -1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


def transformer() -> nn.Module:
    layer = nn.TransformerEncoderLayer(256, 4, 1024, dropout=0.0, batch_first=True)
    return nn.Sequential(nn.Linear(64, 256), nn.TransformerEncoder(layer, 4, enable_nested_tensor=False))


class Last(nn.Module):
    """A recurrent net's output at each step, without its state."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(128, 128, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.lstm(x)[0]


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(784, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 10))


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(1024, 1024), (1024,)),
    "conv2d": (lambda: nn.Conv2d(64, 64, 3, padding=1), (64, 32, 32)),
    "depthwise": (lambda: nn.Conv2d(64, 64, 3, padding=1, groups=64), (64, 32, 32)),
    "mlp": (mlp, (784,)),
    "resnet20": (resnet20, (3, 32, 32)),
    "encoder": (lambda: nn.Sequential(nn.Linear(64, 128), EncoderBlock(), EncoderBlock()), (32, 64)),
    "chain": (lambda: nn.Sequential(*(nn.Linear(16, 16) for _ in range(100))), (16,)),
    "transformer": (transformer, (32, 64)),
    "lstm": (Last, (64, 128)),
}
