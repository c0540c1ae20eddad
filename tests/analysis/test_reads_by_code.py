"""Weights that a forward's code reads without calling their layer, by torch's code and by a user's own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bayesify.analysis.bytecode import called_by_code, forward_chains, read_by_code


class Reader(nn.Module):
    """Layers that its forward reads, calls, or both, in the ways that code does so."""

    def __init__(self) -> None:
        super().__init__()
        names = ("read", "called", "both", "typed", "handed", "in_helper", "in_property", "in_comprehension", "unused")
        self.inner = nn.Sequential()
        self.inner.add_module("deep", nn.Linear(2, 2))
        for name in names:
            setattr(self, name, nn.Linear(2, 2))
        self.initialize()

    def initialize(self) -> None:
        nn.init.zeros_(self.unused.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = F.linear(x, self.read.weight) + self.called(x) + self.both(x) * self.both.weight.sum()
        x = x.to(self.typed.weight.dtype) + sum(F.linear(x, self.in_comprehension.weight) for _ in range(2))
        return self.helper(x, self.handed) + self.value + F.linear(x, self.inner.deep.weight)  # type: ignore[arg-type]

    def helper(self, x: Tensor, layer: nn.Module) -> Tensor:
        return layer(x) @ self.in_helper.weight

    @property
    def value(self) -> Tensor:
        return self.in_property.weight


class CallsSuper(Reader):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


def by_code(parent: nn.Module) -> tuple[set[str], set[str]]:
    """Which of its layers the parent's code reads, and which it calls."""
    ids = read_by_code(parent)
    named = parent.named_modules()
    layers = {name: module for name, module in named if name and list(module.parameters(recurse=False))}
    read = {
        name
        for name, module in layers.items()
        if ids & {id(parameter) for parameter in module.parameters(recurse=False)}
    }
    return read, {name for name in layers if called_by_code(forward_chains(type(parent)), name)}


@pytest.mark.parametrize("parent", [Reader(), CallsSuper()], ids=["own", "super"])
def test_code_that_reads_a_weight_without_calling_the_layer(parent: nn.Module) -> None:
    read, called = by_code(parent)
    assert read - called == {"read", "in_helper", "in_property", "in_comprehension", "inner.deep"}
    assert read & called == {"both"}
    assert called - read == {"called", "handed"}


def test_torch_s_own_attention_is_such_code() -> None:
    read, called = by_code(nn.TransformerEncoderLayer(8, 2, 8))
    assert {"linear1", "norm1"} <= read & called
    assert by_code(nn.MultiheadAttention(8, 2)) == ({"out_proj"}, set())


def test_lists_and_dictionaries_of_parameters_are_read_whole() -> None:
    class Listed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.matrices = nn.ParameterList([torch.zeros(2, 2), torch.zeros(2)])
            self.named = nn.ParameterDict({"a": torch.zeros(2, 2)})

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.matrices[0] @ self.named["a"]

    model = Listed()
    assert read_by_code(model) == {id(parameter) for parameter in model.parameters()}
