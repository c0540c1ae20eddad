"""Tied decoders that get the encoder's weight in every way that code has: their products, too, must have noise."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Given(nn.Module):
    """Multiplies by a weight that it is handed."""

    def forward(self, h: Tensor, weight: Tensor) -> Tensor:
        return F.linear(h, weight)


class GivenByOuter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.bias = Given(), nn.Parameter(torch.zeros(4))

    def forward(self, h: Tensor, weight: Tensor) -> Tensor:
        return self.inner(h, weight.t()) + self.bias


class GivenLayer(nn.Module):
    """Multiplies by the weight of a layer that it is handed, and adds a Parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(4))

    def forward(self, h: Tensor, layer: nn.Linear) -> Tensor:
        return F.linear(h, layer.weight.t(), self.bias)


class GivenAll(nn.Module):
    def forward(self, h: Tensor, weights: Any) -> Tensor:
        return F.linear(h, weights["back"][0])


class Remembers(nn.Module):
    """Holds the encoder past registration, as code does that shall not save it twice."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.held, self.bias = [layer], nn.Parameter(torch.zeros(4))

    def forward(self, h: Tensor) -> Tensor:
        return F.linear(h, self.held[0].weight.t(), self.bias)


class Tied(nn.Module):
    """`enc`, and a decoder of the kind that a subclass makes."""

    def __init__(self) -> None:
        super().__init__()
        self.enc = nn.Linear(4, 6)
        self.dec = self.decoder()

    def decoder(self) -> Any:
        return Given()

    def forward(self, x: Tensor) -> Tensor:
        return self.decoded(torch.tanh(self.enc(x)))

    def decoded(self, h: Tensor) -> Tensor:
        return self.dec(h, self.enc.weight.t())


class ByName(Tied):
    def decoded(self, h: Tensor) -> Tensor:
        return self.dec(h, weight=self.enc.weight.t())


class ThroughTwo(Tied):
    def decoder(self) -> Any:
        return GivenByOuter()

    def decoded(self, h: Tensor) -> Tensor:
        return self.dec(h, self.enc.weight)


class AsLayer(Tied):
    def decoder(self) -> Any:
        return GivenLayer()

    def decoded(self, h: Tensor) -> Tensor:
        return self.dec(h, self.enc)


class InContainers(Tied):
    def decoder(self) -> Any:
        return GivenAll()

    def decoded(self, h: Tensor) -> Tensor:
        return self.dec(h, {"back": [self.enc.weight.t()]})


class Held(Tied):
    def decoder(self) -> Any:
        return Remembers(self.enc)

    def decoded(self, h: Tensor) -> Tensor:
        return self.dec(h)


class HeldBelow(Held):
    def decoder(self) -> Any:
        return nn.Sequential(nn.Identity(), Remembers(self.enc))


class InLambda(Held):
    def decoder(self) -> Any:
        return lambda h: F.linear(h, self.enc.weight.t())


class ByMethod(Tied):
    def __init__(self) -> None:
        super().__init__()
        self.enc.__class__ = LinearWithTranspose

    def decoded(self, h: Tensor) -> Tensor:
        return self.dec(h, self.enc.transposed())


class LinearWithTranspose(nn.Linear):
    def transposed(self) -> Tensor:
        return self.weight.t()


KINDS = (Tied, ByName, ThroughTwo, AsLayer, InContainers, Held, HeldBelow, InLambda)
