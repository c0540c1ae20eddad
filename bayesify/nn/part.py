"""A module of a program that has no code of its own left: its Parameters, and what the program's graph multiplies by them."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_PRODUCTS = ("linear", "bilinear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
_TENSOR_VIEWS = ("view", "contiguous", "to", "type_as", "float", "half", "bfloat16", "double", "view_as", "reshape_as")
_VIEWS = (
    "t", "transpose", "permute", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "swapaxes", "movedim", "chunk",
    "split", "unbind", "narrow",
)  # fmt: skip

PRODUCTS: dict[str, Callable[..., Any]] = {
    **{name: getattr(F, name) for name in _PRODUCTS},
    **{name: getattr(torch, name) for name in ("matmul", "mm", "bmm", "addmm", "einsum")},
}
VIEWS: dict[str, Callable[..., Any]] = {
    **{name: getattr(torch, name) for name in _VIEWS},
    **{name: getattr(Tensor, name) for name in _TENSOR_VIEWS},
    "getitem": operator.getitem,
}
_FUNCTIONS = PRODUCTS | VIEWS


@dataclass(frozen=True)
class Ref:
    """An argument of a step: one of the part's Parameters, an input of the call, or the result of an earlier step."""

    kind: Literal["weight", "input", "step"]
    key: str | int


@dataclass(frozen=True)
class Step:
    """A call of one of torch's functions, by the name that `PRODUCTS` or `VIEWS` has for it."""

    function: str
    args: tuple[Any, ...]
    kwargs: tuple[tuple[str, Any], ...] = ()


class Part(nn.Module):
    """Holds Parameters of a program under the names that they had, and multiplies by them as the program did.

    Args:
        kind: the dotted class of the module that it was, as far as that is known.

    Attributes:
        uses: each product with a Parameter: the views of the weight that it takes, then the product.
        weights: (name, fan-in) of the Parameters that are only multiplied by, or looked up in.
        problems: name -> why another matrix must stay as it is.
        batch_dim: the dimension of the inputs that holds the program's examples.
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.uses: tuple[tuple[Step, ...], ...] = ()
        self.weights: tuple[tuple[str, int], ...] = ()
        self.problems: dict[str, str] = {}
        self.batch_dim = 0

    def forward(self, which: int, like: Tensor | None, *inputs: Tensor) -> Any:
        """The product number `which`; `like` has the program's examples along its first dimension."""
        results: list[Any] = []
        for step in self.uses[which]:
            args = [self._resolved(each, inputs, results) for each in step.args]
            kwargs = {name: self._resolved(each, inputs, results) for name, each in step.kwargs}
            results.append(_FUNCTIONS[step.function](*args, **kwargs))
        return results[-1]

    def _resolved(self, given: Any, inputs: tuple[Tensor, ...], results: list[Any]) -> Any:
        if isinstance(given, list | tuple):
            return type(given)(self._resolved(each, inputs, results) for each in given)
        if not isinstance(given, Ref):
            return given
        if given.kind == "weight":
            return self._parameters[str(given.key)]
        return inputs[int(given.key)] if given.kind == "input" else results[int(given.key)]

    def extra_repr(self) -> str:
        products = ", ".join(use[-1].function for use in self.uses)
        return f"{self.kind.rpartition('.')[2]}: {products}" if products else self.kind.rpartition(".")[2]


def kind_of(module: nn.Module) -> type:
    """The module's class; of a program's module, the class that it was exported from, or a stand-in of that name."""
    kind = vars(module).get("kind") if isinstance(module, Part) or "_exported_batch_dim" in vars(module) else None
    return _stand_in(kind) if isinstance(kind, str) and kind else type(module)


@functools.cache
def _stand_in(kind: str) -> type:
    module, _, name = kind.rpartition(".")
    found = getattr(nn, name, None)
    if isinstance(found, type) and found.__module__ == module:
        return found
    return type(name, (nn.Module,), {"__module__": module, "__qualname__": name})
