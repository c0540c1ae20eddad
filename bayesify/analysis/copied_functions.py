"""Deep copies of models. Functions that hold the model, as a lambda over `self` does, hold the copy there."""

from __future__ import annotations

import copy
import functools
import operator
from collections import OrderedDict
from types import CellType, FunctionType, MethodType
from typing import Any, TypeVar

from torch import Tensor, nn

Model = TypeVar("Model", bound=nn.Module)

_CALLABLES = FunctionType, MethodType, functools.partial
_HOLDERS = (*_CALLABLES, dict, list, tuple)
_HOOKS = {name: type(value) for name, value in vars(nn.Module()).items() if isinstance(value, OrderedDict | set)}


def deep_copy(model: Model, memo: dict[int, Any]) -> Model:
    """A deep copy of the model, as `copy.deepcopy` with this memo makes it, with functions of its own.

    torch copies no function, so that a hook or a lambda over `self` would go on with the original's layers.
    """
    for module in model.modules():
        for name, kind in _HOOKS.items():  # a dozen each, nearly all empty: they would take half of the time
            value = vars(module).get(name)
            if type(value) is kind and not value:
                memo[id(value)] = kind()
    twin = copy.deepcopy(model, memo)
    _follow_in_functions(twin, memo)
    return twin


def _follow_in_functions(twin: nn.Module, memo: dict[int, Any]) -> None:
    """Give the copy functions of its own where functions hold the original."""
    cells: dict[int, CellType] = {}
    for module in twin.modules():
        own = vars(module)
        for name, value in list(own.items()):
            if name != "_modules" and isinstance(value, _HOLDERS):
                own[name] = _followed(value, memo, cells)


def _followed(value: Any, memo: dict[int, Any], cells: dict[int, CellType]) -> Any:
    if isinstance(value, _CALLABLES):
        return _callable(value, memo, cells)
    if type(value) in (dict, OrderedDict):
        for key, inner in value.items():
            value[key] = _followed(inner, memo, cells)  # in its place: a hook's handle knows the dict that it is in
    elif type(value) is list:
        value[:] = [_followed(inner, memo, cells) for inner in value]
    elif type(value) is tuple:
        inside = tuple(_followed(inner, memo, cells) for inner in value)
        return value if all(map(operator.is_, inside, value)) else inside
    return value


def _callable(value: Any, memo: dict[int, Any], cells: dict[int, CellType]) -> Any:
    if isinstance(value, FunctionType):
        return _function(value, memo, cells)
    if isinstance(value, MethodType):  # in a closure torch leaves it as it is
        owner = _copy_of(value.__self__, memo)
        return value if owner is value.__self__ else MethodType(value.__func__, owner)
    function, args, kwargs = (_followed(part, memo, cells) for part in (value.func, value.args, value.keywords))
    return functools.partial(function, *args, **kwargs)


def _function(function: FunctionType, memo: dict[int, Any], cells: dict[int, CellType]) -> FunctionType:
    """The function over the copies of what it is over; itself where nothing of that was copied."""
    closure = tuple(_cell(cell, memo, cells) for cell in function.__closure__ or ())
    defaults = tuple(_copy_of(value, memo) for value in function.__defaults__ or ())
    same = all(map(operator.is_, closure, function.__closure__ or ()))
    if same and all(map(operator.is_, defaults, function.__defaults__ or ())):
        return function
    twin = FunctionType(function.__code__, function.__globals__, function.__name__, defaults or None, closure or None)
    twin.__kwdefaults__, twin.__qualname__, twin.__module__ = (
        function.__kwdefaults__, function.__qualname__, function.__module__,
    )  # fmt: skip
    vars(twin).update(vars(function))
    return twin


def _cell(cell: CellType, memo: dict[int, Any], cells: dict[int, CellType]) -> CellType:
    """The same for all functions over it: one may set what another reads."""
    if id(cell) not in cells:
        try:
            held = cell.cell_contents
        except ValueError:  # empty
            return cell
        cells[id(cell)] = cell  # a function over itself
        value = _callable(held, memo, cells) if isinstance(held, _CALLABLES) else _copy_of(held, memo)
        cells[id(cell)] = cell if value is held else CellType(value)
    return cells[id(cell)]


def _copy_of(value: Any, memo: dict[int, Any]) -> Any:
    return memo.get(id(value), value) if isinstance(value, nn.Module | Tensor) else value
