"""What a pickle would do, found without doing any of it: the globals that it names, calls and builds, and its storages.

A pickle is a program without branches for a small stack machine, so that following its stack with stand-ins for the
values tells exactly which global meets which operation.
"""

from __future__ import annotations

import pickletools
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from .global_names import Name, modern, words

# What torch's weights_only reader knows (torch/_weights_only_unpickler.py); it stops at any other.
READABLE = words("""
    APPEND APPENDS BINFLOAT BINGET BININT BININT1 BININT2 BINPERSID BINPUT BINUNICODE BUILD EMPTY_DICT EMPTY_LIST
    EMPTY_SET EMPTY_TUPLE GLOBAL LONG1 LONG_BINGET LONG_BINPUT MARK NEWFALSE NEWOBJ NEWTRUE NONE PROTO REDUCE SETITEM
    SETITEMS SHORT_BINSTRING STOP TUPLE TUPLE1 TUPLE2 TUPLE3
""")


class MalformedPickleError(Exception):
    """The bytes are no pickle, or one that no pickler writes."""


@dataclass(eq=False)
class Made:
    """What a call or a `__new__` of `maker` would return; `fills`: items are put in like into a `dict` or a `list`."""

    maker: Any
    args: Any = ()
    state: Any = None
    fills: str | None = None


class Tuple(tuple[Any, ...]):
    """A tuple of stand-ins that remembers at which byte it opens, where it opens with a mark."""

    start: int = -1


@dataclass
class Listing:
    """Everything that a pickle names, in order of appearance.

    Attributes:
        names: every global, also those that only `getattr` reaches.
        calls: (what is called, with which arguments).
        made: every object that a call or `__new__` makes.
        storages: the identifiers of tensor storages, as torch's pickler writes them, without the leading "storage".
        sources: byte positions (tuple opens, identifier ends) of old-format notes about a class's source code.
        strange: identifiers of any other kind.
        unreadable: opcodes that torch's weights_only reader doesn't know.
        result: the stand-in for what the pickle returns.
    """

    names: dict[Name, None] = field(default_factory=dict)
    calls: list[tuple[Any, Any]] = field(default_factory=list)
    made: list[Made] = field(default_factory=list)
    storages: list[tuple[Any, ...]] = field(default_factory=list)
    sources: list[tuple[int, int]] = field(default_factory=list)
    strange: list[Any] = field(default_factory=list)
    unreadable: set[str] = field(default_factory=set)
    result: Any = None

    @property
    def tensors(self) -> int:
        """How many tensors the pickle rebuilds."""
        return sum(isinstance(maker, Name) and maker.qualname.startswith("_rebuild_tensor") for maker, _ in self.calls)

    @property
    def top(self) -> Name | None:
        """The class of the object that the pickle holds, if it is an object."""
        made = self.result
        return made.maker if isinstance(made, Made) and isinstance(made.maker, Name) else None


def listing(stream: bytes | BinaryIO) -> Listing:
    """Follow one pickle, from its start to its STOP, and list what it names.

    Raises:
        MalformedPickleError: the bytes are no pickle.
    """
    machine = _Machine()
    try:
        for opcode, argument, position in pickletools.genops(stream):
            machine.step(opcode, argument, position or 0)
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError, MemoryError) as error:
        raise MalformedPickleError(str(error)) from None
    return machine.found


class _Machine:
    """The pickle machine's stack and memo over stand-ins: strings, numbers, Tuple, Name, Made; None for the rest."""

    def __init__(self) -> None:
        self.found = Listing()
        self.stack: list[Any] = []
        self.below: list[tuple[list[Any], int]] = []
        self.memo: dict[int, Any] = {}

    def step(self, opcode: pickletools.OpcodeInfo, argument: Any, position: int) -> None:
        if opcode.name not in READABLE:
            self.found.unreadable.add(opcode.name)
        special = getattr(self, f"_{opcode.name.lower()}", None)
        if special is not None:
            special(argument, position)
        elif opcode.name in _PUTS:
            self.memo[argument] = self.stack[-1]
        elif opcode.name in _GETS:
            self.stack.append(self.memo[argument])
        else:
            self._plain(opcode, argument)

    def _plain(self, opcode: pickletools.OpcodeInfo, argument: Any) -> None:
        before = list(opcode.stack_before)
        if pickletools.markobject in before:
            self._to_mark()
            before = before[: before.index(pickletools.markobject)]
        for _ in before:
            self.stack.pop()
        for kind in opcode.stack_after:
            value = Made(_LITERALS[kind.name]) if kind.name in _LITERALS else None
            self.stack.append(argument if isinstance(argument, str | int) else value)

    def _to_mark(self) -> tuple[list[Any], int]:
        items = self.stack
        self.stack, start = self.below.pop()
        return items, start

    def _mark(self, _: Any, position: int) -> None:
        self.below.append((self.stack, position))
        self.stack = []

    def _name(self, name: Name) -> None:
        self.found.names[name] = None
        self.stack.append(name)

    def _global(self, argument: str, _: int) -> None:
        module, qualname = argument.split(" ")
        self._name(modern(module, qualname))

    def _stack_global(self, *_: Any) -> None:
        qualname, module = self.stack.pop(), self.stack.pop()
        self._name(modern(_text(module), _text(qualname)))

    def _make(self, maker: Any, args: Any, called: bool) -> None:
        if called:
            self.found.calls.append((maker, args))
            reached = _reached(maker, args)
            if reached is not None:
                return self._name(reached)
        made = Made(maker, args)
        self.found.made.append(made)
        self.stack.append(made)

    def _reduce(self, *_: Any) -> None:
        args, maker = self.stack.pop(), self.stack.pop()
        self._make(maker, args, called=True)

    def _newobj(self, *_: Any) -> None:
        args, maker = self.stack.pop(), self.stack.pop()
        self._make(maker, args, called=False)

    def _newobj_ex(self, *_: Any) -> None:
        self.stack.pop()
        self._newobj()

    def _inst(self, argument: str, position: int) -> None:
        items, _ = self._to_mark()
        self._global(argument, position)
        self._make(self.stack.pop(), Tuple(items), called=True)

    def _obj(self, *_: Any) -> None:
        items = self._to_mark()[0]
        self._make(items[0], Tuple(items[1:]), called=True)

    def _build(self, *_: Any) -> None:
        state = self.stack.pop()
        if isinstance(self.stack[-1], Made):
            self.stack[-1].state = state

    def _fill(self, kind: str) -> None:
        if isinstance(self.stack[-1], Made):
            self.stack[-1].fills = kind

    def _setitems(self, *_: Any) -> None:
        self._to_mark()
        self._fill("dict")

    def _setitem(self, *_: Any) -> None:
        del self.stack[-2:]
        self._fill("dict")

    def _appends(self, *_: Any) -> None:
        self._to_mark()
        self._fill("list")

    def _append(self, *_: Any) -> None:
        self.stack.pop()
        self._fill("list")

    def _additems(self, *_: Any) -> None:
        self._to_mark()

    def _tuple(self, *_: Any) -> None:
        items, start = self._to_mark()
        marked = Tuple(items)
        marked.start = start
        self.stack.append(marked)

    def _tuple1(self, *_: Any) -> None:
        self.stack[-1:] = [Tuple(self.stack[-1:])]

    def _tuple2(self, *_: Any) -> None:
        self.stack[-2:] = [Tuple(self.stack[-2:])]

    def _tuple3(self, *_: Any) -> None:
        self.stack[-3:] = [Tuple(self.stack[-3:])]

    def _empty_tuple(self, *_: Any) -> None:
        self.stack.append(Tuple())

    def _memoize(self, *_: Any) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def _dup(self, *_: Any) -> None:
        self.stack.append(self.stack[-1])

    def _pop(self, *_: Any) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self._to_mark()

    def _binpersid(self, _: Any, position: int) -> None:
        identifier = self.stack.pop()
        kind = identifier[0] if isinstance(identifier, tuple) and identifier else None
        value = None
        if kind == "storage":
            self.found.storages.append(tuple(identifier[1:]))
        elif kind == "module" and len(identifier) == 4 and identifier.start >= 0:
            self.found.sources.append((identifier.start, position))
            value = identifier[1]
        else:
            self.found.strange.append(identifier)
        self.stack.append(value)

    def _stop(self, *_: Any) -> None:
        self.found.result = self.stack.pop()


_PUTS = frozenset({"PUT", "BINPUT", "LONG_BINPUT"})
_GETS = frozenset({"GET", "BINGET", "LONG_BINGET"})
_LITERALS = {kind: Name("builtins", kind) for kind in ("dict", "list", "set")}
_GETATTR = Name("builtins", "getattr")


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("a global whose name is no text")
    return value


def _reached(maker: Any, args: Any) -> Name | None:
    """`getattr(pkg.Outer, "Inner")`, as picklers write a nested class, is the global `pkg.Outer.Inner`."""
    if maker == _GETATTR and isinstance(args, tuple) and len(args) == 2:
        owner, attribute = args
        if isinstance(owner, Name) and isinstance(attribute, str):
            return Name(owner.module, f"{owner.qualname}.{attribute}")
    return None
