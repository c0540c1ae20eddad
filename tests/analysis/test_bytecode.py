"""Bytecode changes with the interpreter: what is read from it is what the source says."""

import ast
import inspect
import textwrap
import types

import pytest
import torch
from torch import nn

from bayesify.analysis.bytecode import (
    called_by_code,
    calls_super_forward,
    forward_chains,
    read_by_code,
    self_chains,
)
from tests import nets

MODULES = [
    nets, nn.modules.transformer, nn.modules.activation, nn.modules.rnn, nn.modules.conv, nn.modules.batchnorm,
    nn.modules.adaptive, nn.modules.container, nn.modules.sparse, nn.modules.loss, torch.ao.nn.quantized,
]  # fmt: skip


def by_source(function):
    """The longest chains `self.a.b` that the source reads."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    reads = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)]
    shorter = {id(node.value) for node in reads}
    chains = {chain(node) for node in reads if id(node) not in shorter}
    return {names[1:] for names in chains if names and names[0] == "self"}


def chain(node):
    if isinstance(node, ast.Name):
        return (node.id,)
    before = chain(node.value) if isinstance(node, ast.Attribute) else ()
    return (*before, node.attr) if before else ()


def codes(function):
    waiting = [function.__code__]
    while waiting:
        code = waiting.pop()
        yield code
        waiting += [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_bytecode_says_what_the_source_says(module):
    forwards = {
        function
        for cls in vars(module).values()
        if isinstance(cls, type) and issubclass(cls, nn.Module) and cls.__module__ != "builtins"
        for name, function in vars(cls).items()
        if isinstance(function, types.FunctionType) and name in ("forward", "forward_impl", "extra_repr")
    }
    read = {
        function: {names for code in codes(function) for names in self_chains(code) if names}
        for function in forwards
    }
    assert any(read.values())
    assert {function.__qualname__ for function, chains in read.items() if chains != by_source(function)} == set()
    if module is nn.modules.transformer:
        assert any(len(names) > 1 for chains in read.values() for names in chains)


def test_a_class_without_source_is_understood():
    space = {"nn": nn, "F": nn.functional, "__name__": "nowhere"}
    lines = [
        "class Net(nn.Module):",
        "    def __init__(self):",
        "        super().__init__()",
        "        self.a, self.b = nn.Linear(2, 2), nn.Linear(2, 2)",
        "    def forward(self, x):",
        "        return F.linear(self.a(x), self.b.weight)",
        "class Doubled(nn.Linear):",
        "    def forward(self, x):",
        "        return super().forward(2 * x.to(self.weight.dtype))",
        "class Read(nn.Linear):",
        "    def forward(self, x):",
        "        return super().forward(x) + self.weight.sum()",
    ]
    exec("\n".join(lines), space)
    net = space["Net"]()
    with pytest.raises((OSError, TypeError)):
        inspect.getsource(space["Net"])
    assert called_by_code(forward_chains(type(net)), "a")
    assert not called_by_code(forward_chains(type(net)), "b")
    assert read_by_code(net) == {id(net.b.weight)}
    assert calls_super_forward(space["Doubled"].forward)
    assert not calls_super_forward(space["Read"].forward)
    assert not calls_super_forward(space["Net"].forward)
