"""Small models with everything that models have, and a snapshot of all that a call could change in one."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy


class Block(nn.Module):
    """A residual block."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))))


class SmallResNet(nn.Module):
    """A stem, two residual blocks and a head; input (N, 3, 8, 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, stride=2)
        self.layer1 = nn.Sequential(Block(4), Block(4))
        self.dropout = nn.Dropout(0.5)
        self.fc = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.dropout(self.layer1(self.conv1(x)).mean((2, 3))))


class Tangled(nn.Module):
    """Aliases, ties, a spare, a norm, an embedding, a frozen layer and attention; input (N, 3) of token numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.emb = nn.Embedding(7, 4)
        self.a = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)
        self.again = self.a
        self.attn = nn.MultiheadAttention(4, 2, batch_first=True)
        self.twin = nn.Linear(4, 4)
        self.twin.weight = self.a.weight
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.spare = nn.Linear(4, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.emb.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.again(self.norm(self.a(self.emb(tokens))))
        x = self.twin(self.attn(x, x, x, need_weights=False)[0])
        return self.head(self.frozen(x))


def image(batch: int = 4) -> Tensor:
    """Input of SmallResNet."""
    return torch.randn(batch, 3, 8, 8)


def tokens(batch: int = 4) -> Tensor:
    """Input of Tangled."""
    return torch.randint(7, (batch, 3))


def snapshot(model: nn.Module) -> Any:
    """All that surgery could change: classes, every attribute by identity, tensors by their bytes, random states."""
    modules = [
        (name, id(module), type(module), {key: _frozen(value) for key, value in vars(module).items()})
        for name, module in model.named_modules(remove_duplicate=False)
    ]
    return modules, randomness()


def randomness() -> Any:
    """The state of every generator."""
    return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()


def _frozen(value: Any) -> Any:
    if is_lazy(value):
        return id(value), "uninitialized", value.requires_grad
    if isinstance(value, Tensor) and value.is_meta:
        return id(value), value.shape, value.dtype, value.requires_grad
    if isinstance(value, Tensor):
        data = value.detach().contiguous().view(torch.uint8) if value.dim() else value.detach().clone().tolist()
        return id(value), data.tolist() if isinstance(data, Tensor) else data, value.requires_grad, value._version
    if isinstance(value, dict):
        return [(key, _frozen(each)) for key, each in value.items()]
    if isinstance(value, list | tuple):
        return [_frozen(each) for each in value]
    return value if isinstance(value, int | float | str | None) else id(value)
