"""The short form of small layers serves plain calls, and no call that wants something else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import bayesify
from bayesify.estimators import noise
from bayesify.nn import linear
from bayesify.nn.examples_alone import examples_alone

X = torch.randn(4, 6)


@contextmanager
def _counted() -> Iterator[list[Tensor | None]]:
    """What the short form gave, call by call."""
    given: list[Tensor | None] = []
    with pytest.MonkeyPatch.context() as patch:
        for cls in (linear.FlipoutLinear, linear.LRTLinear):
            small = cls.small
            patch.setattr(cls, "small", staticmethod(lambda *own, small=small: given.append(small(*own)) or given[-1]))
        yield given


def _layer(method: str, **policy: Any) -> Any:
    return bayesify.convert(nn.Linear(6, 5), {"method": method, **policy})


@pytest.mark.parametrize("method", ["flipout", "lrt"])
def test_it_serves_plain_calls(method: str) -> None:
    layer = _layer(method)
    with _counted() as given:
        output = layer(X)
        with torch.no_grad():
            layer(X)
        layer.eval()(X, return_kl=True)
    assert len(given) == 3
    assert output is given[0]


class _Modes:
    class Functions(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return func(*args, **(kwargs or {}))

    class Operators(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return func(*args, **(kwargs or {}))


INSIDE: dict[str, Callable[[Any], AbstractContextManager[Any]]] = {
    "autocast": lambda layer: torch.autocast("cpu", torch.bfloat16),
    "posterior_mean": bayesify.posterior_mean,
    "draw": bayesify.draw,
    "a function mode": lambda layer: _Modes.Functions(),
    "a dispatch mode": lambda layer: _Modes.Operators(),
    "examples alone": lambda layer: examples_alone(),
    "counted noise": lambda layer: noise.counted(),
    "forward mode": lambda layer: torch.autograd.forward_ad.dual_level(),
}


@pytest.mark.parametrize("method", ["flipout", "lrt"])
@pytest.mark.parametrize("inside", INSIDE)
def test_it_serves_no_call_inside(inside: str, method: str) -> None:
    layer = _layer(method)
    with _counted() as given, INSIDE[inside](layer):
        layer(X)
    assert not given


CALLS: dict[str, Callable[[Any], Any]] = {
    "vmap": lambda layer: torch.func.vmap(lambda _: layer(X), randomness="different")(torch.empty(2)),
    "trace": lambda layer: torch.jit.trace(layer, X, check_trace=False),
    "export": lambda layer: torch.export.export(layer, (X,)),
    "compile": lambda layer: torch.compile(layer, backend="eager", fullgraph=True)(X),
    "keyword": lambda layer: layer(input=X),
}


@pytest.mark.parametrize("method", ["flipout", "lrt"])
@pytest.mark.parametrize("call", CALLS)
def test_it_serves_no_such_call(call: str, method: str) -> None:
    layer = _layer(method)
    with _counted() as given:
        CALLS[call](layer)
    assert not given


def _rotated(method: str) -> Any:
    layer = _layer(method)
    layer.register_buffer("weight_basis", torch.eye(6))
    return layer


LAYERS: dict[str, Callable[[str], Any]] = {
    "a posterior over the bias": lambda method: _layer(method, bias="variational"),
    "a multiplicative posterior": lambda method: _layer(method, posterior={"parameterization": "multiplicative"}),
    "noise in bfloat16": lambda method: _layer(method, posterior={"noise_dtype": "bfloat16"}),
    "a basis": _rotated,
    "weight norm": lambda method: bayesify.convert(parametrizations.weight_norm(nn.Linear(6, 5)), method),
    "pruned": lambda method: bayesify.convert(prune.l1_unstructured(nn.Linear(6, 5), "weight", 0.5), method),
    "examples in dimension 1": lambda method: _with(method, batch_dim=1),
    "folded examples": lambda method: _with(method, rows=2),
}


def _with(method: str, **settings: int) -> Any:
    layer = _layer(method)
    layer._settings = type(layer._settings)(**{**vars(layer._settings), **settings})
    return layer


@pytest.mark.parametrize("method", ["flipout", "lrt"])
@pytest.mark.parametrize("kind", LAYERS)
def test_it_serves_no_such_layer(kind: str, method: str) -> None:
    layer = LAYERS[kind](method)
    with _counted() as given, nullcontext():
        layer(X)
    assert not given


def test_wrong_inputs_fail_as_the_plain_layer_says() -> None:
    layer = _layer("flipout")
    for wrong in ((), (X, X), (torch.randn(4, 7),)):
        with pytest.raises((TypeError, RuntimeError)) as plain:
            nn.Linear(6, 5)(*wrong)
        with pytest.raises(plain.type):
            layer(*wrong)
