"""Methods beside `forward` that multiply by a weight: no noise goes with their products."""

from __future__ import annotations

import dis
from collections.abc import Sequence
from types import CodeType, FunctionType

from ..nn.torch_functions import MULTIPLICATIONS
from .bytecode import Chain, code_from, self_chains

_PRODUCTS = frozenset(row.name for row in MULTIPLICATIONS.values())
_NOT_THE_USERS = ("torch.", "bayesify.", "builtins", "typing")


def multiplying_methods(cls: type) -> dict[str, frozenset[Chain]]:
    """By the method's name, `__call__` included, what its code reads from `self` beside a product.

    Methods that the forward calls are not among them, nor those that only set weights up or tie them.
    """
    seen = set(code_from(cls, "forward"))
    codes = {name: [code for code in code_from(cls, name) if code not in seen] for name in _methods(cls)}
    chains = {name: _multiplying_chains(own) for name, own in codes.items()}
    return {name: read for name, read in chains.items() if read}


def _methods(cls: type) -> dict[str, None]:
    """The names of the methods in classes that are not torch's."""
    users = [base for base in cls.__mro__ if not f"{base.__module__}.".startswith(_NOT_THE_USERS)]
    members = [(name, member) for base in reversed(users) for name, member in vars(base).items()]
    asked = [name for name, member in members if isinstance(member, FunctionType) and not name.startswith("__")]
    own_call = [name for name, member in members if name == "__call__" and isinstance(member, FunctionType)]
    return dict.fromkeys(name for name in (*asked, *own_call) if name != "forward")


def _multiplying_chains(codes: Sequence[CodeType]) -> frozenset[Chain]:
    if not any(not _PRODUCTS.isdisjoint(code.co_names) or _has_matrix_product(code) for code in codes):
        return frozenset()
    return frozenset(chain for code in codes for chain in self_chains(code))


def _has_matrix_product(code: CodeType) -> bool:
    return any(step.opname == "BINARY_MATRIX_MULTIPLY" or step.argrepr == "@" for step in dis.get_instructions(code))
