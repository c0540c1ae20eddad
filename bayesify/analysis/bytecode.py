"""What a forward does, read from its bytecode: for modules that torch.fx cannot trace, and for classes without source.

The source, by `ast`, says the same where there is some (a test holds the two together), and takes 25 times as long.
"""

from __future__ import annotations

import dis
import inspect
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import pairwise
from types import CodeType

from torch import nn

from ..nn.parametrized_weights import sources

Chain = tuple[str, ...]  # ("attn", "qkv", "weight") of `self.attn.qkv.weight`

# what code may ask of a weight without computing with it
_INNOCENT = {"dtype", "device", "shape", "size", "dim", "ndim", "numel", "requires_grad", "grad", "is_cuda"}
_ATTRIBUTE = ("LOAD_ATTR", "LOAD_METHOD")
_DERIVATIVES = {"jacrev", "jacfwd", "jvp", "vjp", "hessian", "jacobian"}
_WALKS = ("parameters", "named_parameters")
_WEIGHT_NAMES = ("weight", "bias", "_flat_weights", "all_weights")  # how names of what holds weights start


def forward_chains(cls: type) -> frozenset[Chain]:
    """The longest chains of attributes that the class's forward reads from `self`."""
    return frozenset(chain for code in code_from(cls, "forward") for chain in self_chains(code))


def called_by_code(chains: frozenset[Chain], path: str) -> bool:
    """Whether a forward with these chains calls `self.<path>`, or hands it on.

    This needs no trace, and so covers models that do not trace. Code that reaches the layer by another way than
    `self.<path>` (a loop over `children()`, an index) is not understood, and answers False.
    """
    parts = tuple(path.split("."))
    mentions = (chain[len(parts) :] for chain in chains if chain[: len(parts)] == parts)
    return any(rest[:1] in ((), ("forward",), ("__call__",)) for rest in mentions)


def read_by_code(parent: nn.Module) -> frozenset[int]:
    """The ids of Parameters, of modules below the parent, that its forward's code reads as `self.<path>.<name>`."""
    chains = forward_chains(type(parent))
    return frozenset(id(parameter) for chain in chains for parameter in _parameters_at(parent, chain))


def read_by_train(module: nn.Module) -> frozenset[int]:
    """The ids of the Parameters that the class's own `train` or `eval` computes with, as LoRA layers do that merge."""
    methods = [name for name in ("train", "eval") if getattr(type(module), name) is not getattr(nn.Module, name)]
    chains = {chain for name in methods for code in code_from(type(module), name) for chain in self_chains(code)}
    return read_along(module, chains)


def read_along(module: nn.Module, chains: Iterable[Chain]) -> frozenset[int]:
    """The ids of the Parameters, of the module and those below, that these chains read from it."""
    return frozenset(id(parameter) for chain in chains for parameter in _parameters_at(module, chain, own=True))


def kept_on_self(cls: type) -> tuple[str, ...]:
    """What the class's forward sets, as `self.name`, and its methods that keep what they return."""
    codes = code_from(cls, "forward")
    named = dict.fromkeys(name for code in codes for name in code.co_names)
    names = [name for name in named if hasattr(getattr(cls, name, None), "cache_info")]
    for code in codes:
        steps = [*dis.get_instructions(code)]
        for before, step in pairwise(steps):
            if step.opname == "STORE_ATTR":
                loaded = before.argval[-1] if isinstance(before.argval, tuple) else before.argval
                names += [step.argval] if loaded == "self" else []
    return tuple(f"self.{name}" for name in dict.fromkeys(names))


def read_again(cls: type) -> frozenset[str]:
    """What the class's forward reads as `self.name`, if it also keeps anything there: state from call to call."""
    kept = {place.removeprefix("self.") for place in kept_on_self(cls)}
    chains = [chain for chain in forward_chains(cls) if chain]
    grown = {chain[0] for chain in chains if chain[1:] in (("append",), ("extend",), ("add",), ("insert",))}
    return frozenset({chain[0] for chain in chains if len(chain) == 1 or chain[0] in grown} & (kept | grown))


def parameter_walks(cls: type) -> frozenset[Chain | None]:
    """Of what the class's forward goes over the Parameters: () of `self`, ("net",) of `self.net`, None of others.

    To take the first one, for its device, is not that.
    """
    walks: set[Chain | None] = set()
    for code in code_from(cls, "forward"):
        if "next" in code.co_names or not {*code.co_names} & {*_WALKS}:
            continue
        chains = [chain[:-1] for chain in _chains(code) if chain[-1:] and chain[-1] in _WALKS]
        asked = sum(step.argval in _WALKS for step in dis.get_instructions(code) if step.opname in _ATTRIBUTE)
        walks.update((*chains, None) if asked > len(chains) else chains)
    return frozenset(walks)


def takes_state_dict(cls: type) -> bool:
    """Whether the class's forward asks a module for its state_dict."""
    return any("state_dict" in code.co_names for code in code_from(cls, "forward"))


def takes_derivatives(cls: type) -> bool:
    """Whether the class's forward takes derivatives of what it computes, as force fields do of an energy."""
    names = [{*code.co_names} for code in code_from(cls, "forward")]
    return any({"autograd", "grad"} <= own or own & _DERIVATIVES for own in names)


def reached_names(cls: type) -> frozenset[str]:
    """Names that the class's forward mentions, and those that the methods so named mention in turn."""
    return frozenset(name for code in code_from(cls, "forward") for name in code.co_names)


def calls_super_forward(forward: object) -> bool:
    """Whether a forward calls `super().forward`, and reads no weight beside that except for its dtype or shape."""
    code = getattr(inspect.unwrap(forward), "__code__", None) if callable(forward) else None
    if code is None or not {"super", "forward"} <= {*code.co_names}:
        return False
    steps = [*dis.get_instructions(code)]
    reads = [
        at for at, step in enumerate(steps) if str(step.argval).startswith(_WEIGHT_NAMES) and "ATTR" in step.opname
    ]
    return all(steps[at + 1].argval in ("dtype", "device", "shape") for at in reads)


@lru_cache(maxsize=4096)
def self_chains(code: CodeType) -> frozenset[Chain]:
    """The longest chains of attributes that the code reads from `self`; () where it uses `self` itself."""
    return frozenset(_chains(code))


def _chains(code: CodeType) -> Iterator[Chain]:
    chain: Chain | None = None
    for step in dis.get_instructions(code):
        if chain is not None and step.opname in _ATTRIBUTE:
            chain = (*chain, step.argval)
            continue
        yield chain or ()
        loads = step.opname.startswith(("LOAD_FAST", "LOAD_DEREF"))
        # Newer Pythons load two locals in one step.
        last = step.argval[-1] if loads and isinstance(step.argval, tuple) else step.argval
        chain = () if loads and last == "self" else None


def _parameters_at(parent: nn.Module, chain: Chain, own: bool = False) -> Iterator[nn.Parameter]:
    """What `self.<chain>` reads of the modules below; of a module whose method it calls, what that method reads."""
    module = parent
    for at, name in enumerate(chain):
        child = module._modules.get(name)
        if isinstance(child, nn.ParameterList | nn.ParameterDict):
            yield from child.parameters(recurse=False)
            return
        if child is None:
            parameters = sources(module, name) if at or own else []
            if parameters and not _INNOCENT & set(chain[at + 1 : at + 2]):
                yield from parameters
            elif at and not hasattr(nn.Module, name) and not type(module).__module__.startswith("torch.nn."):
                inside = (chain for code in code_from(type(module), name) for chain in self_chains(code))
                yield from (parameter for chain in inside for parameter in _parameters_at(module, chain, own=True))
            return
        module = child


def code_from(cls: type, method: str) -> list[CodeType]:
    """Code of the method, of the class's methods and properties that it names, and of what is nested in those."""
    codes: list[CodeType] = []
    seen, pending = {method}, [method]
    while pending:
        for code in _method_code(cls, pending.pop()):
            codes.append(code)
            fresh = [name for name in code.co_names if name not in seen and not hasattr(nn.Module, name)]
            seen.update(fresh)
            pending += fresh
    return codes


def _method_code(cls: type, name: str) -> Iterator[CodeType]:
    """Code of the method or property, nested functions too, and of the one that it overrides where it says super()."""
    for owner in (base for base in cls.__mro__ if name in vars(base)):
        attribute = vars(owner)[name]
        function = inspect.unwrap(getattr(attribute, "fget", None) or getattr(attribute, "__func__", attribute))
        codes = [function.__code__] if hasattr(function, "__code__") else []
        calls_super = False
        while codes:
            code = codes.pop()
            yield code
            calls_super = calls_super or "super" in code.co_names
            codes += [constant for constant in code.co_consts if isinstance(constant, CodeType)]
        if not calls_super:
            return
