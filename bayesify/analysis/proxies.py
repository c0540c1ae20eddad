"""Proxies that stand in for unknown values during tracing: tensors, their sizes, and the model's weights."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx
from torch.fx.proxy import Attribute, ParameterProxy


class _Lenient:
    """An unknown value that is 1 where Python needs a number, so that a loop over it runs once.

    If its tracer's `told` is set, dtypes and devices are float32 and cpu instead of unknown.
    """

    tracer: Any

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # a protocol that is probed for, such as numpy's __array__
            raise AttributeError(name)
        if name in _TOLD and self.tracer.told:
            return _TOLD[name]
        return _Attribute(self, name)  # type: ignore[arg-type]

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "data":
            self.tracer.create_proxy("call_method", "set_", (self, value), {})
        else:
            super().__setattr__(name, value)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, key, value), {})

    def __len__(self) -> int:
        return 1  # the number of items that the tracer's `iter` gives

    def __index__(self) -> int:
        return 1

    def __int__(self) -> int:
        return 1

    def __float__(self) -> float:
        return 1.0


_TOLD = {"device": torch.device("cpu"), "dtype": torch.float32}


class Unknown(_Lenient, fx.Proxy):
    """An unknown value of any kind."""


class _Attribute(_Lenient, Attribute):
    """An attribute of an unknown value."""


class Size(Unknown, int):  # type: ignore[misc]
    """A size of an unknown tensor. It is also the int 2, for loops and for functions that make tensors."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    def __new__(cls, node: fx.Node, tracer: Any) -> Size:
        """The int that code gets which takes nothing but an int."""
        return int.__new__(cls, 2)  # a loop from 1 runs once

    __index__, __int__, __float__ = int.__index__, int.__int__, int.__float__
    __hash__ = fx.Proxy.__hash__


class Weight(ParameterProxy):
    """A Parameter: its shape is known, its values are not."""

    def size(self, dim: int | None = None) -> Any:
        """The Parameter's own size."""
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
