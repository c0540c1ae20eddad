"""An interrupt at any bytecode of a conversion in place, or of its inverse, leaves a whole model: one way or the other.

Interrupts are raised by a tracing function, before one instruction in bayesify's code that is drawn by a fixed seed.
"""

from __future__ import annotations

import copy
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import bayesify
from bayesify.surgery.all_or_nothing import all_or_nothing

from ..nets import Tangled, snapshot, tokens
from ..programs.test_graph_module import Functional

SOURCE = str(Path(bayesify.__file__).parent)


def count_or_interrupt(action: Callable[[], Any], *interrupts: int) -> int:
    """Run the action, with KeyboardInterrupt before the instructions of these numbers; how many instructions it ran."""
    seen = 0

    def trace(frame: Any, event: str, arg: Any) -> Any:
        nonlocal seen
        if not frame.f_code.co_filename.startswith(SOURCE):
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            seen += 1
            if seen in interrupts:
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        action()
    finally:
        sys.settrace(before)
    return seen


def network() -> tuple[nn.Module, Any]:
    return Tangled(), tokens


def graph() -> tuple[nn.Module, Any]:
    return fx.symbolic_trace(Functional()), lambda: torch.randn(5, 4)


def form(model: nn.Module) -> Any:
    """Everything that a model is made of, in words, except values."""
    modules = [
        (name, type(module).__name__, sorted(vars(module)), list(module._parameters), [*module._forward_hooks.values()])
        for name, module in model.named_modules()
    ]
    graphs = [module for module in model.modules() if isinstance(module, fx.GraphModule)]
    return modules, [(module.code, str(module.graph)) for module in graphs]


def at_mean(model: nn.Module, x: Tensor) -> Any:
    if any(True for _ in bayesify.variational_layers(model)):
        with bayesify.posterior_mean(model):
            return model(x)
    return model(x)


@pytest.mark.parametrize("make", [network, graph])
@pytest.mark.parametrize("change", ["convert", "mean", "sample"])
def test_interrupts_at_random_instructions(make: Any, change: Any) -> None:
    """84 in each of six cases; every third time Ctrl-C is pressed again while the model is put back."""
    plain, data = make()
    x = data()
    expected = plain.eval()(x)
    made = bayesify.convert(plain)
    bayesify.set_posterior_std(made, 1e-8)
    forms = {"plain": form(copy.deepcopy(plain)), "converted": form(copy.deepcopy(made))}

    def run(model: Any, *interrupts: int) -> int:
        if change == "convert":
            return count_or_interrupt(lambda: bayesify.convert(model, inplace=True), *interrupts)
        return count_or_interrupt(lambda: bayesify.revert(model, change, inplace=True), *interrupts)

    start = plain if change == "convert" else made
    run(copy.deepcopy(start))  # what is done the first time only
    count, chosen = run(copy.deepcopy(start)), random.Random(change)
    for turn in range(84):  # half of them late: planning takes most of the time
        model = copy.deepcopy(start)
        before, at = snapshot(model)[0], chosen.randint(1 if turn % 2 else 2 * count // 3, count)
        with pytest.raises(KeyboardInterrupt):
            run(model, at, at + chosen.randint(40, 400) if turn % 3 == 0 else 0)
        if form(model) == form(copy.deepcopy(start)) and change != "sample":
            assert snapshot(model)[0] == before  # bit-equal, and the same objects
        assert form(model) in forms.values()
        with torch.no_grad():
            torch.testing.assert_close(at_mean(model, x), expected)


def test_the_values_are_put_back_too() -> None:
    layer = nn.Linear(2, 2)
    layer.register_forward_hook(lambda *_: None)
    weight, before = layer.weight.detach().clone(), snapshot(layer)

    def change() -> None:
        layer.weight.data.zero_()
        layer.extra = 1  # type: ignore[assignment]
        layer._forward_hooks.clear()
        layer.__class__ = nn.Identity  # type: ignore[assignment]
        raise ValueError("half way")

    with pytest.raises(ValueError, match="half way"):
        all_or_nothing(layer, change, [layer.weight])
    assert snapshot(layer) == before
    assert torch.equal(layer.weight, weight)
