"""Modules that compute a weight in eval mode once and keep it, in every place that code has for that."""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TABLE: dict[int, Tensor] = {}


class Normed(nn.Module):
    """Multiplies by its weight over its norm; `kept` is where a subclass keeps that."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.table, self.items = nn.Parameter(torch.randn(4, 4)), dict[str, Any](), list[Any]()
        self.register_buffer("buffer", torch.zeros(4, 4))
        self.filled = False

    def normed(self) -> Tensor:
        return self.w / self.w.norm()

    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.normed() if self.training else self.kept())

    def kept(self) -> Tensor:
        return self.normed()


class InDict(Normed):
    def kept(self) -> Any:
        if "w" not in self.table:
            self.table["w"] = self.normed()
        return self.table["w"]


class InList(Normed):
    def kept(self) -> Any:
        if not self.items:
            self.items.append(self.normed())
        return self.items[0]


class InBuffer(Normed):
    def kept(self) -> Any:
        if not self.filled:
            self.buffer.copy_(self.normed())
        return self.buffer


class InDataOfBuffer(Normed):
    def kept(self) -> Any:
        if not self.filled:
            self.buffer.data = self.normed()
        return self.buffer


class InAttribute(Normed):
    def kept(self) -> Any:
        if not hasattr(self, "memory"):
            object.__setattr__(self, "memory", self.normed())
        return self.memory


class InGlobal(Normed):
    def kept(self) -> Any:
        if id(self) not in TABLE:
            TABLE[id(self)] = self.normed()
        return TABLE[id(self)]


class InLruCache(Normed):
    @functools.lru_cache(1)  # noqa: B019
    def kept(self) -> Any:
        return self.normed()


class InCachedProperty(Normed):
    @functools.cached_property
    def memory(self) -> Tensor:
        return self.normed()

    def kept(self) -> Any:
        return self.memory


class ViewInDict(Normed):
    """Keeps a view of the weight that it else only multiplies by."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return x @ self.w
        if "w" not in self.table:
            self.table["w"] = self.w.t().contiguous()
        return x @ self.table["w"].t()


class OfChild(nn.Module):
    """Calls its convolution while it trains, and keeps one that it fused, in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.gain, self.table = nn.Conv1d(4, 4, 1), nn.Parameter(torch.ones(4, 1, 1)), dict[str, Any]()

    def forward(self, x: Tensor) -> Tensor:
        x = x.unsqueeze(-1)
        if self.training:
            return self.conv(x).flatten(1) * self.gain.flatten()
        if "w" not in self.table:
            self.table["w"] = self.conv.weight * self.gain
        return F.conv1d(x, self.table["w"], self.conv.bias).flatten(1)


class KeepsOutput(Normed):
    """Keeps what it computed of data, anew at each call: nothing is frozen."""

    def forward(self, x: Tensor) -> Tensor:
        self.table["last"] = x @ self.normed()
        out: Tensor = self.table["last"]
        return out


KINDS = (
    InDict, InList, InBuffer, InDataOfBuffer, InAttribute, InGlobal, InLruCache, InCachedProperty, ViewInDict, OfChild,
)  # fmt: skip
