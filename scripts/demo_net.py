"""A small residual network of the demo's own, as a user's would be: bayesify has never heard of it."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Block(nn.Module):
    """Two convolutions beside a shortcut (He et al. 2016)."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after)
        self.conv2, self.bn2 = nn.Conv2d(after, after, 3, 1, 1, bias=False), nn.BatchNorm2d(after)
        self.shortcut = nn.Conv2d(before, after, 1, stride, bias=False) if before != after else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(hidden)) + self.shortcut(x))


class ResNet(nn.Module):
    """For images of 8×8 pixels: a stem, `blocks` residual blocks at each width, a linear head over the average.

    It has 2 + 2·blocks·len(widths) layers, and one for each shortcut that changes the width.
    """

    def __init__(self, widths: tuple[int, ...] = (16, 32, 64), blocks: int = 1, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, widths[0], 3, 1, 1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU())
        before = (widths[0], *widths)
        self.stages = nn.Sequential(*(_stage(before[at], width, blocks, at > 0) for at, width in enumerate(widths)))
        self.fc = nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.stages(self.stem(x)).mean((2, 3)))


def _stage(before: int, after: int, blocks: int, halve: bool) -> nn.Sequential:
    first = Block(before, after, 2 if halve else 1)
    return nn.Sequential(first, *(Block(after, after, 1) for _ in range(blocks - 1)))
