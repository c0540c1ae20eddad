"""What a trace computes with in place of what it does not know: tensors, their sizes, and the model's weights."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx
from torch.fx.proxy import Attribute, ParameterProxy


class _Lenient:
    """What is not known, where Python asks for a number: one, so that a loop is seen once.

    Its tracer's `told` says whether dtypes and devices are some instead of unknown.
    """

    tracer: Any

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # a protocol, such as numpy's, that asks what it is
            raise AttributeError(name)
        if name in _TOLD and self.tracer.told:
            return _TOLD[name]
        return _Attribute(self, name)  # type: ignore[arg-type]

    def __setitem__(self, key: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, key, value), {})

    def __len__(self) -> int:
        return 1  # as many as a tracer's `iter` gives

    def __index__(self) -> int:
        return 1

    def __int__(self) -> int:
        return 1

    def __float__(self) -> float:
        return 1.0


_TOLD = {"device": torch.device("cpu"), "dtype": torch.float32}


class Unknown(_Lenient, fx.Proxy):
    """Any value."""


class _Attribute(_Lenient, Attribute):
    """An attribute of one."""


class Size(Unknown, int):  # type: ignore[misc]
    """A number that is told by the form of a tensor: functions that make tensors, and loops, take it for 2."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    def __new__(cls, node: fx.Node, tracer: Any) -> Size:
        """An int, for what takes nothing else."""
        return int.__new__(cls, 2)  # a loop from 1 runs once

    __index__, __int__, __float__ = int.__index__, int.__int__, int.__float__
    __hash__ = fx.Proxy.__hash__


class Weight(ParameterProxy):
    """A Parameter, whose form is known."""

    def size(self, dim: int | None = None) -> Any:
        """As the Parameter's."""
        return self.shape if dim is None else self.shape[dim]

    def __len__(self) -> int:
        return int(self.shape[0])

    def __setitem__(self, key: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, key, value), {})


def is_size(node: fx.Node) -> bool:
    """Whether the node's value is one size, or a number made of sizes."""
    if node.target is operator.getitem:
        return _is_shape(node.args[0]) and not isinstance(node.args[1], slice)
    if node.target is getattr:
        return node.args[1] == "ndim"
    asked = (node.target == "size" and not _is_shape(node)) or node.target in ("dim", "numel")
    counted = node.op == "call_function" and getattr(node.target, "__module__", "") == "_operator"
    inputs = node.all_input_nodes
    return (node.op == "call_method" and asked) or (counted and bool(inputs) and all(map(is_size, inputs)))


def _is_shape(node: Any) -> bool:
    if node.target is operator.getitem:
        return _is_shape(node.args[0]) and isinstance(node.args[1], slice)
    of_tensor = node.target is getattr and node.args[1] == "shape"
    return of_tensor or (node.target == "size" and len(node.args) + len(node.kwargs) == 1)
