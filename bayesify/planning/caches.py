"""Models that are handed state from one call to the next: caches of keys and values, hidden states."""

from __future__ import annotations

import dis
import inspect
from types import CodeType
from typing import Any

from torch import nn

_CACHES = {
    "past", "past_key_value", "past_key_values", "layer_past", "kv_cache", "key_value_cache", "cache", "cache_params",
    "mems", "hx", "prev_state", "initial_state", "rnn_state",
}  # fmt: skip
_STATES = {"h", "hidden", "hidden_state", "state", "states", "carry", "memory"}  # if they are returned under that name


def handed_state(model: nn.Module) -> str | None:
    """The argument of the model's forward by which a caller hands on what an earlier call returned, or None.

    Names such as `past_key_values` say it; names such as `state` do where the forward sets them anew and returns them.
    A model that transformers would not generate with has such an argument for other uses.
    """
    generates: Any = getattr(type(model), "can_generate", None)
    if callable(generates) and not model.can_generate():  # type: ignore[operator]
        return None
    forward = inspect.unwrap(type(model).forward)
    code = getattr(forward, "__code__", None)
    if code is None:
        return None
    names = code.co_varnames[1 : code.co_argcount + code.co_kwonlyargcount]
    again = _set_and_returned(code) if _STATES & {*names[1:]} else frozenset()
    return next((name for name in names[1:] if name in _CACHES or name in _STATES & again), None)


def _set_and_returned(code: CodeType) -> frozenset[str]:
    """The local names that the code sets, and that end a tuple which it returns."""
    steps = [*dis.get_instructions(code)]
    stored = {name for step in steps if step.opname.startswith("STORE_FAST") for name in _names(step)}
    returned: set[str] = set()
    for at, step in enumerate(steps):
        if step.opname == "RETURN_VALUE" and steps[at - 1].opname == "BUILD_TUPLE":
            back = at - 2
            while steps[back].opname.startswith("LOAD_FAST"):
                returned.update(_names(steps[back]))
                back -= 1
    return frozenset(stored & returned)


def _names(step: dis.Instruction) -> tuple[str, ...]:
    """Newer Pythons load or store two locals in one step."""
    return step.argval if isinstance(step.argval, tuple) else (step.argval,)
