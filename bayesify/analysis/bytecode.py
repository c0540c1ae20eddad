"""What a forward does, read from its bytecode: for modules that torch.fx cannot trace."""

from __future__ import annotations

import dis
import inspect
from collections.abc import Iterator
from functools import lru_cache
from types import CodeType

from torch import nn

from ..nn.parametrized_weights import sources


def called_by_code(parent: nn.Module, path: str) -> bool:
    """Whether the parent's forward, by its code, calls `self.<path>`, or hands it on.

    This needs no trace, and so covers models that do not trace. Code that reaches the layer by another way than
    `self.<path>` (a loop over `children()`, an index) is not understood, and answers False.
    """
    parts = tuple(path.split("."))
    chains = (each for code in _code_from(type(parent), "forward") for each in _self_chains(code))
    mentions = (each[len(parts) :] for each in chains if each[: len(parts)] == parts)
    return any(rest[:1] in ((), ("forward",), ("__call__",)) for rest in mentions)


def read_by_code(parent: nn.Module) -> frozenset[int]:
    """The ids of Parameters, of modules below the parent, that its forward's code reads as `self.<path>.<name>`."""
    chains = (each for code in _code_from(type(parent), "forward") for each in _self_chains(code))
    return frozenset(id(each) for chain in chains for each in _parameters_at(parent, chain))


def _parameters_at(parent: nn.Module, chain: tuple[str, ...], own: bool = False) -> Iterator[nn.Parameter]:
    """What `self.<chain>` reads of the modules below; of a module whose method it calls, what that method reads."""
    module = parent
    for at, name in enumerate(chain):
        child = module._modules.get(name)
        if isinstance(child, nn.ParameterList | nn.ParameterDict):
            yield from child.parameters(recurse=False)
            return
        if child is None:
            found = sources(module, name) if at or own else []
            if found and not _INNOCENT & set(chain[at + 1 : at + 2]):
                yield from found
            elif at and not hasattr(nn.Module, name) and not type(module).__module__.startswith("torch.nn."):
                inside = (each for code in _code_from(type(module), name) for each in _self_chains(code))
                yield from (each for chain in inside for each in _parameters_at(module, chain, own=True))
            return
        module = child


def reached_names(cls: type) -> frozenset[str]:
    """Names that the class's forward mentions, and those that the methods so named mention in turn."""
    return frozenset(name for code in _code_from(cls, "forward") for name in code.co_names)


def _code_from(cls: type, method: str) -> list[CodeType]:
    """Code of the method, of the class's methods and properties that it names, and of what is nested in those."""
    found: list[CodeType] = []
    seen, pending = {method}, [method]
    while pending:
        for code in _method_code(cls, pending.pop()):
            found.append(code)
            fresh = [each for each in code.co_names if each not in seen and not hasattr(nn.Module, each)]
            seen.update(fresh)
            pending += fresh
    return found


def _method_code(cls: type, name: str) -> Iterator[CodeType]:
    """Code of the method or property, nested functions too, and of the one that it overrides where it says super()."""
    for owner in (each for each in cls.__mro__ if name in vars(each)):
        attribute = vars(owner)[name]
        function = inspect.unwrap(getattr(attribute, "fget", None) or getattr(attribute, "__func__", attribute))
        codes = [function.__code__] if hasattr(function, "__code__") else []
        calls_super = False
        while codes:
            code = codes.pop()
            yield code
            calls_super = calls_super or "super" in code.co_names
            codes += [each for each in code.co_consts if isinstance(each, CodeType)]
        if not calls_super:
            return


@lru_cache(maxsize=4096)
def _self_chains(code: CodeType) -> frozenset[tuple[str, ...]]:
    """("attn", "qkv", "weight") for each `self.attn.qkv.weight` in the code."""
    found: set[tuple[str, ...]] = set()
    run: tuple[str, ...] | None = None
    for step in dis.get_instructions(code):
        if run is not None and step.opname in ("LOAD_ATTR", "LOAD_METHOD"):
            run = (*run, step.argval)
            continue
        found.add(run or ())
        loads = step.opname.startswith(("LOAD_FAST", "LOAD_DEREF"))
        # Newer Pythons load two locals in one step.
        last = step.argval[-1] if loads and isinstance(step.argval, tuple) else step.argval
        run = () if loads and last == "self" else None
    return frozenset(found)


_INNOCENT = {"dtype", "device", "shape", "size", "dim", "ndim", "numel", "requires_grad", "grad", "is_cuda"}
