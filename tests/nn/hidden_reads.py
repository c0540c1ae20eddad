"""Networks that reach a layer's weight in ways that no trace and no code of the forward shows."""

from __future__ import annotations

import types
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Untraced(nn.Module):
    """`a` and `b`; what subclasses multiply by, after a call that ends every trace."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        np.asarray(x.detach())
        return self.multiplied(x)

    def multiplied(self, x: Tensor) -> Tensor:
        return self.b(self.a(x))


def applied(x: Tensor, layer: Any) -> Tensor:
    return F.linear(x, layer.weight, layer.bias)


def weight_of(layer: Any) -> Any:
    return layer.weight


class Applies(nn.Module):
    def forward(self, x: Tensor, layer: Any) -> Tensor:
        return torch.addmm(layer.bias, x, layer.weight.t())


class FunctionGetsLayer(Untraced):
    def multiplied(self, x: Tensor) -> Tensor:
        return applied(applied(x, self.a), self.b)


class ChildGetsLayer(Untraced):
    def __init__(self) -> None:
        super().__init__()
        self.child = Applies()

    def multiplied(self, x: Tensor) -> Tensor:
        return self.child(self.child(x, self.a), self.b)


class Closure(Untraced):
    def multiplied(self, x: Tensor) -> Tensor:
        def step(x: Tensor, name: str) -> Tensor:
            return x @ getattr(self, name).weight.mT

        return step(step(x, "a"), "b")


class ByName(Untraced):
    def multiplied(self, x: Tensor) -> Tensor:
        weights = dict(self.named_parameters())
        return torch.einsum("ni,oi->no", self.b(x), weights["a.weight"])


class Held(Untraced):
    def __init__(self) -> None:
        super().__init__()
        self.weights = [self.a.weight, self.b.weight]

    def multiplied(self, x: Tensor) -> Tensor:
        return F.linear(F.linear(x, self.weights[0]), self.weights[1])


class Data(Untraced):
    def multiplied(self, x: Tensor) -> Tensor:
        return self.b(F.linear(x, weight_of(self.a).data))


class StateDict(Untraced):
    def multiplied(self, x: Tensor) -> Tensor:
        return self.b(F.linear(x, self.state_dict()["a.weight"]))


class Table(Untraced):
    def multiplied(self, x: Tensor) -> Tensor:
        return self.b(F.linear(x, self.a._parameters["weight"]))  # type: ignore[arg-type]


class Normalized(Untraced):
    def multiplied(self, x: Tensor) -> Tensor:
        return F.linear(self.b(x), F.normalize(weight_of(self.a), dim=1))


class Summed(Untraced):
    def multiplied(self, x: Tensor) -> Tensor:
        return self.b(F.linear(x, weight_of(self.a) + weight_of(self.b)))


class Hooked(Untraced):
    def __init__(self) -> None:
        super().__init__()
        self.a.register_forward_hook(lambda layer, given, output: applied(given[0], layer))


class OwnCall(nn.Sequential):
    """One whose `__call__` is its own, so that its forward never runs."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = _Called()


class _Called(Untraced):
    def __call__(self, x: Tensor) -> Tensor:
        np.asarray(x.detach())
        return applied(self.b(x), self.a)


class OwnForward(Untraced):
    def __init__(self) -> None:
        super().__init__()
        self.forward = types.MethodType(_twice, self)  # type: ignore[method-assign]


def _twice(model: Untraced, x: Tensor) -> Tensor:
    return applied(applied(x, model.a), model.b)


KINDS = (
    FunctionGetsLayer, ChildGetsLayer, Closure, ByName, Held, Data, StateDict, Table, Normalized, Summed, Hooked,
    OwnCall, OwnForward,
)  # fmt: skip
