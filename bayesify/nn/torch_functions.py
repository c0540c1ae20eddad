"""torch's functions that multiply by a weight or only view it: the one table, and what a call does with a weight."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import product_readers as read
from .product_readers import Reader, Use


class Role(Enum):
    """What a call does with one of its arguments."""

    FORM = "takes its shape, dtype or device and no value"
    ROWS = "looks rows up in it"
    VIEW = "views or casts it"
    SCALED = "multiplies or divides it element by element, which scales its std as much"
    FACTOR = "multiplies by it"
    ADDED = "adds it to a product"
    OTHER = "anything else"


@dataclass(frozen=True)
class Multiplication:
    """One of torch's functions that multiply by a weight.

    Attributes:
        name: what a program's steps call it; saved files hold this name.
        functions: the function under all its Python names; a step runs the first.
        reader: reads its arguments as a product.
        place: the parameter that can be nothing but a weight; "" where either factor may be one.
        added: the parameter that is added to the product.
    """

    name: str
    functions: tuple[Callable[..., Any], ...]
    reader: Reader
    place: str = ""
    added: str = ""

    def use(self, weight: Tensor, args: Any, kwargs: Any) -> Use | None:
        """The call as a product by `weight`; None where it is not one, or is spelled in a way that is not known."""
        most, names = self._spelling
        if len(args) > most or not names.issuperset(kwargs):
            return None
        return self.reader(weight, *args, **kwargs)

    def role(self, args: Any, kwargs: Any, weight: Any) -> Role:
        """What the call does with `weight`, as far as its place among the arguments tells."""
        try:
            given = self._signature.bind(None, *args, **kwargs).arguments
        except TypeError:  # such as `out=`
            return Role.OTHER
        given["operands"] = (operands := read.einsum_operands(given.get("operands", ())))
        places = [name for name, value in given.items() if name != "operands" and value is weight]
        places += ["operands" for operand in operands if operand is weight]
        if operands and (len(operands) != 2 or not read.einsum_sides(args[0])):
            return Role.OTHER
        if len(places) != 1:
            return Role.OTHER
        return Role.ADDED if places == [self.added] else Role.FACTOR if self.place in ("", *places) else Role.OTHER

    def by_place(self, args: Any, kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments with as few as possible by name; as they are where they do not fit."""
        try:
            bound = self._signature.bind(None, *args, **kwargs)
        except TypeError:
            return args, kwargs
        return bound.args[1:], bound.kwargs

    @cached_property
    def _signature(self) -> inspect.Signature:
        return inspect.signature(self.reader)

    @cached_property
    def _spelling(self) -> tuple[float, frozenset[str]]:
        """How many arguments it takes by position, and which by name."""
        parameters = list(self._signature.parameters.values())[1:]
        if any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters):
            return float("inf"), frozenset()
        by_position = [parameter for parameter in parameters if parameter.kind is parameter.POSITIONAL_OR_KEYWORD]
        return len(by_position), frozenset(parameter.name for parameter in parameters)


_DIMS = (1, 2, 3)
_TABLE = (
    Multiplication("linear", (F.linear,), read.linear, "weight", "bias"),
    Multiplication("bilinear", (F.bilinear,), read.bilinear, "weight", "bias"),
    Multiplication("_trilinear", (torch._trilinear,), read.trilinear, "i2"),
    Multiplication("addmm", (torch.addmm, Tensor.addmm), read.addmm, "mat2", "input"),
    Multiplication("baddbmm", (torch.baddbmm, Tensor.baddbmm), read.baddbmm, added="input"),
    Multiplication("einsum", (torch.einsum,), read.einsum),
    Multiplication(
        "matmul", (torch.matmul, Tensor.matmul, Tensor.__matmul__, operator.matmul, torch.linalg.matmul), read.matmul
    ),
    Multiplication("mm", (torch.mm, Tensor.mm), read.mm),
    Multiplication("bmm", (torch.bmm, Tensor.bmm), read.mm),
    Multiplication("mv", (torch.mv, Tensor.mv), read.mv),
    Multiplication("inner", (torch.inner, Tensor.inner), read.inner),
    Multiplication("tensordot", (torch.tensordot,), read.tensordot),
    Multiplication("_grouped_mm", (torch._grouped_mm,), read.grouped_mm, "mat2", "bias"),
    Multiplication("grouped_mm", (F.grouped_mm,), read.public_grouped_mm, "mat_b", "bias"),
    *(
        Multiplication(f"conv{dims}d", (getattr(F, f"conv{dims}d"),), read.convolution, "weight", "bias")
        for dims in _DIMS
    ),
    *(
        Multiplication(
            f"conv_transpose{dims}d", (getattr(F, f"conv_transpose{dims}d"),), read.transposed_convolution,
            "weight", "bias",
        )
        for dims in _DIMS
    ),
)  # fmt: skip

MULTIPLICATIONS: dict[Any, Multiplication] = {function: row for row in _TABLE for function in row.functions}

_ATTENTION = F.multi_head_attention_forward
# torch's functions that are Python over others: their bodies, which do not ask first whether they are overridden. To
# call one under a mode, with the mode still on inside, leaves no other way: `has_torch_function` sees the mode, too.
BODIES: dict[Any, Callable[..., Any]] = {
    _ATTENTION: FunctionType(
        _ATTENTION.__code__,
        {**_ATTENTION.__globals__, "has_torch_function": lambda tensors: False},
        argdefs=_ATTENTION.__defaults__,
    ),
}
_PROJECTIONS = {*(f"{name}_weight" for name in ("in_proj", "q_proj", "k_proj", "v_proj", "out_proj"))}


def _named(*names: str, among: tuple[Any, ...] = (torch, Tensor)) -> dict[Any, str]:
    """The functions of these names in torch's modules: function -> name."""
    functions_of = {name: [getattr(module, name, None) for module in among] for name in names}
    return {function: name for name, functions in functions_of.items() for function in functions if callable(function)}


_CASTS = _named("to", "type_as", "float", "half", "bfloat16", "double", "type", "contiguous")
_VIEWS = {
    **_CASTS,
    **_named(
        "t", "transpose", "permute", "view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "swapaxes",
        "movedim", "chunk", "split", "unbind", "narrow", "view_as", "reshape_as",
    ),
    operator.getitem: "getitem", Tensor.__getitem__: "getitem",
    Tensor.T.__get__: "T", Tensor.mT.__get__: "mT",  # type: ignore[attr-defined]
}  # fmt: skip
# They repeat or copy a weight. Programs do so for each row of a batch; elsewhere the copy may be written to.
_SPREADS = _named("expand", "clone")

VIEWS: frozenset[Any] = frozenset(_VIEWS)
CASTS: frozenset[Any] = frozenset(_CASTS)  # views that keep the shape
SPREADS: frozenset[Any] = frozenset(_SPREADS)

# Both ways between functions and the names that a program's steps, and so saved files, have for them.
NAMES: dict[Any, str] = {**{function: row.name for function, row in MULTIPLICATIONS.items()}, **_VIEWS, **_SPREADS}
FUNCTIONS: dict[str, Callable[..., Any]] = {name: function for function, name in reversed(NAMES.items())}

_LIKENING = (Tensor.to, Tensor.type_as, Tensor.view_as, Tensor.reshape_as)
_TIMES = frozenset(_named("mul", "multiply", "__mul__", "__rmul__", among=(torch, Tensor, operator)))
_OVER = frozenset(
    _named("div", "divide", "true_divide", "truediv", "__truediv__", among=(torch, Tensor, operator))
)  # fmt: skip
_LOOK_UPS = frozenset((F.embedding, torch.embedding, F.embedding_bag))
_FORMS: frozenset[Any] = frozenset(
    [
        *_named(
            "size", "dim", "numel", "stride", "is_contiguous", "storage_offset", "is_floating_point", "is_complex",
            "__len__",
            among=(Tensor,),
        ),
        *(
            getattr(Tensor, name).__get__
            for name in ("shape", "dtype", "device", "ndim", "requires_grad", "is_cuda", "is_nested", "layout", "grad")
        ),
    ]
)  # fmt: skip


def role(function: Any, args: Any, kwargs: Any, weight: Any) -> Role:
    """What a call of one of torch's functions does with one of its arguments, a tensor or what stands for it."""
    if function in VIEWS or function in SPREADS:
        if (args[0] if args else kwargs.get("input")) is weight:
            return Role.VIEW if function in VIEWS else Role.OTHER
        return Role.FORM if function in _LIKENING else Role.OTHER
    if function in _FORMS:
        return Role.FORM
    if function in _LOOK_UPS:
        return Role.ROWS
    if function in _TIMES or (function in _OVER and args and args[0] is weight):
        return Role.SCALED
    if function in MULTIPLICATIONS:
        return MULTIPLICATIONS[function].role(args, kwargs, weight)
    return Role.FACTOR if function in BODIES and _projects(function, args, kwargs, weight) else Role.OTHER


def by_place(function: Any, args: Any, kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a call, those by name put in their place as far as a product or a view has one for them."""
    if function in MULTIPLICATIONS:
        return MULTIPLICATIONS[function].by_place(args, kwargs)
    if not args and "input" in kwargs and function in NAMES:
        return (kwargs["input"],), {name: value for name, value in kwargs.items() if name != "input"}
    return args, kwargs


def _projects(function: Any, args: Any, kwargs: Any, weight: Any) -> bool:
    given = inspect.signature(function).bind(*args, **kwargs).arguments
    return [name in _PROJECTIONS for name, value in given.items() if value is weight] == [True]


def only_for_weights(function: Any) -> bool:
    """Whether the function multiplies by an argument that can be nothing but a weight."""
    return function in BODIES or (function in MULTIPLICATIONS and MULTIPLICATIONS[function].place != "")
