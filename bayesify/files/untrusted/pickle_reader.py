"""A pickle read into inert nodes: its small stack machine, with stand-ins for everything that it would make.

Nothing is imported, looked up or called. Time and memory are bounded by the pickle's size and by limits of their own.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ...errors import FileRefusedError
from .byte_stream import ByteStream, MalformedPickleError
from .content import Content
from .global_names import Name, modern
from .nodes import Call, Dict, Persistent, Set

MAX_OPERATIONS = 20_000_000
MAX_OBJECTS = 4_000_000  # lists, dicts, tuples and objects
_GETATTR = Name("builtins", "getattr")


@dataclass
class Pickle:
    """A pickle as data.

    Attributes:
        root: the node of what it holds.
        end: where in the content it ends.
        names: every global that it names, in order of appearance, also those that only `getattr` reaches.
        called: the globals that it calls.
        storages: the identifiers of the tensors' storages.
    """

    root: Any = None
    end: int = 0
    names: dict[Name, None] = field(default_factory=dict)
    called: set[Name] = field(default_factory=set)
    storages: list[Persistent] = field(default_factory=list)


def read_pickle(content: Content, at: int = 0) -> Pickle:
    """Read one pickle, from its start to its STOP.

    Raises:
        MalformedPickleError: the bytes are not a pickle, or one that no pickler writes.
        FileRefusedError: it ends too early, or is larger than any that a model needs.
    """
    machine = _Machine(ByteStream(content, at))
    try:
        machine.run()
    except FileRefusedError:
        raise
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError, struct.error) as error:
        raise MalformedPickleError(f"{type(error).__name__}: {error}"[:200]) from None
    return machine.pickle


class _Machine:
    def __init__(self, stream: ByteStream) -> None:
        self.stream = stream
        self.pickle = Pickle()
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.objects = 0

    def run(self) -> None:
        take, operations = self.stream.take, _OPERATIONS
        for _ in range(MAX_OPERATIONS):
            code = take(1)
            if code == b".":
                self.pickle.root, self.pickle.end = self.stack.pop(), self.stream.position
                if self.stack or self.below:
                    raise MalformedPickleError("it ends with values left over")
                return
            operation = operations.get(code)
            if operation is None:
                raise MalformedPickleError(f"operation {code!r}, which no file of torch has")
            operation(self)
        raise FileRefusedError("its pickle has more operations than any model needs; refused")

    def made(self, node: Any) -> None:
        self.objects += 1
        if self.objects > MAX_OBJECTS:
            raise FileRefusedError("its pickle has more objects than any model needs; refused")
        self.stack.append(node)

    def to_mark(self) -> list[Any]:
        items = self.stack
        self.stack = self.below.pop()
        return items

    def name(self, module: Any, qualname: Any) -> None:
        if not isinstance(module, str) or not isinstance(qualname, str):
            raise MalformedPickleError("a global whose name is not a text")
        name = modern(module, qualname)
        self.pickle.names[name] = None
        self.stack.append(name)

    def called(self, maker: Any, args: Any) -> None:
        """A call: of a global, or of getattr for a class inside a class, which is a global of its own."""
        if not isinstance(args, tuple):
            raise MalformedPickleError("a call whose arguments are not a tuple")
        owner, attribute = args if len(args) == 2 else (None, None)
        if maker == _GETATTR and isinstance(owner, Name) and isinstance(attribute, str):
            return self.name(owner.module, f"{owner.qualname}.{attribute}")
        if isinstance(maker, Name):
            self.pickle.called.add(maker)
        return self.made(Call(maker, args, new=False))

    def put(self, index: int) -> None:
        self.memo[index] = self.stack[-1]


def _number(form: str) -> Callable[[_Machine], int]:
    reader = struct.Struct(form)
    return lambda machine: reader.unpack(machine.stream.take(reader.size))[0]


_u1, _u2, _u4, _u8, _i4 = (_number(form) for form in ("<B", "<H", "<I", "<Q", "<i"))


def _sized(size: Callable[[_Machine], int], read: Callable[[bytes], Any]) -> Callable[[_Machine], None]:
    """An operation that pushes what it reads from a number of bytes, that number first."""
    return lambda machine: machine.stack.append(read(machine.stream.take(size(machine))))


def _constant(value: Any) -> Callable[[_Machine], None]:
    return lambda machine: machine.stack.append(value)


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogatepass")


def _old_string(data: bytes) -> str | bytes:
    """A str of Python 2, which is a text or bytes."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


def _long(data: bytes) -> int:
    return int.from_bytes(data, "little", signed=True)


def _int_line(machine: _Machine) -> None:
    line = machine.stream.line()
    machine.stack.append({b"00": False, b"01": True}[line] if line in (b"00", b"01") else int(line))


def _string_line(machine: _Machine) -> None:
    line = machine.stream.line().strip()
    if len(line) < 2 or line[:1] not in (b"'", b'"') or line[-1:] != line[:1] or b"\\" in line:
        raise MalformedPickleError("a string without quotes")
    machine.stack.append(_old_string(line[1:-1]))


def _global(machine: _Machine) -> None:
    machine.name(_text(machine.stream.line()), _text(machine.stream.line()))


def _stack_global(machine: _Machine) -> None:
    qualname, module = machine.stack.pop(), machine.stack.pop()
    machine.name(module, qualname)


def _instance(machine: _Machine) -> None:
    args = tuple(machine.to_mark())
    _global(machine)
    machine.called(machine.stack.pop(), args)


def _object(machine: _Machine) -> None:
    maker, *args = machine.to_mark()
    machine.called(maker, tuple(args))


def _reduce(machine: _Machine) -> None:
    args, maker = machine.stack.pop(), machine.stack.pop()
    machine.called(maker, args)


def _new(machine: _Machine, with_keywords: bool = False) -> None:
    kwargs = machine.stack.pop() if with_keywords else None
    args, maker = machine.stack.pop(), machine.stack.pop()
    if not isinstance(args, tuple) or not isinstance(kwargs, Dict | None):
        raise MalformedPickleError("an object whose arguments are not a tuple")
    machine.made(Call(maker, args, kwargs, new=True))


def _build(machine: _Machine) -> None:
    state, node = machine.stack.pop(), machine.stack[-1]
    if not isinstance(node, Call) or node.state is not None:
        raise MalformedPickleError("an object that is given its state twice, or something else that is given one")
    node.state = state


def _append(machine: _Machine, items: list[Any]) -> None:
    node = machine.stack[-1]
    if isinstance(node, Call):
        node.items += items
    elif isinstance(node, list):
        node += items
    else:
        raise MalformedPickleError("items for what is not a list")


def _add(machine: _Machine) -> None:
    items = machine.to_mark()
    if not isinstance(machine.stack[-1], Set):
        raise MalformedPickleError("items for what is not a set")
    machine.stack[-1].items += items


def _set_items(machine: _Machine, flat: list[Any]) -> None:
    node = machine.stack[-1]
    if not isinstance(node, Call | Dict) or len(flat) % 2:
        raise MalformedPickleError("items for what is not a dict")
    node.pairs += zip(flat[::2], flat[1::2], strict=True)


def _dict(machine: _Machine) -> None:
    flat = machine.to_mark()
    machine.made(Dict())
    _set_items(machine, flat)


def _one(machine: _Machine, count: int) -> list[Any]:
    taken = machine.stack[-count:]
    if len(taken) != count:
        raise MalformedPickleError("values that are not there")
    del machine.stack[-count:]
    return taken


def _mark(machine: _Machine) -> None:
    machine.below.append(machine.stack)
    machine.stack = []


def _pop(machine: _Machine) -> None:
    if machine.stack:
        machine.stack.pop()
    else:
        machine.to_mark()


def _persistent(machine: _Machine) -> None:
    identifier = machine.stack.pop()
    kind = identifier[0] if isinstance(identifier, tuple) and identifier else None
    if kind == "module" and len(identifier) == 4:
        machine.stack.append(identifier[1])  # an old file's note about a class's source code
        return
    node = Persistent(identifier)
    machine.pickle.storages.append(node)
    machine.made(node)


_OPERATIONS: dict[bytes, Callable[[_Machine], Any]] = {
    b"\x80": _u1, b"\x95": _u8,  # the protocol's number, the length of a frame
    b"N": _constant(None), b"\x88": _constant(True), b"\x89": _constant(False),
    b"J": lambda m: m.stack.append(_i4(m)), b"K": lambda m: m.stack.append(_u1(m)),
    b"M": lambda m: m.stack.append(_u2(m)), b"I": _int_line,
    b"L": lambda m: m.stack.append(int(m.stream.line().rstrip(b"L"))),
    b"\x8a": _sized(_u1, _long), b"\x8b": _sized(_i4, _long),
    b"G": lambda m: m.stack.append(struct.unpack(">d", m.stream.take(8))[0]),
    b"F": lambda m: m.stack.append(float(m.stream.line())),
    b"X": _sized(_u4, _text), b"\x8c": _sized(_u1, _text), b"\x8d": _sized(_u8, _text),
    b"V": lambda m: m.stack.append(m.stream.line().decode("raw-unicode-escape")),
    b"T": _sized(_i4, _old_string), b"U": _sized(_u1, _old_string), b"S": _string_line,
    b"B": _sized(_u4, bytes), b"C": _sized(_u1, bytes), b"\x8e": _sized(_u8, bytes), b"\x96": _sized(_u8, bytearray),
    b"]": lambda m: m.made([]), b"l": lambda m: m.made(m.to_mark()),
    b")": _constant(()), b"t": lambda m: m.made(tuple(m.to_mark())),
    b"\x85": lambda m: m.made(tuple(_one(m, 1))), b"\x86": lambda m: m.made(tuple(_one(m, 2))),
    b"\x87": lambda m: m.made(tuple(_one(m, 3))),
    b"}": lambda m: m.made(Dict()), b"d": _dict,
    b"\x8f": lambda m: m.made(Set([], frozen=False)), b"\x91": lambda m: m.made(Set(m.to_mark(), frozen=True)),
    b"a": lambda m: _append(m, _one(m, 1)), b"e": lambda m: _append(m, m.to_mark()), b"\x90": _add,
    b"s": lambda m: _set_items(m, _one(m, 2)), b"u": lambda m: _set_items(m, m.to_mark()),
    b"(": _mark, b"0": _pop, b"1": lambda m: m.to_mark(), b"2": lambda m: m.stack.append(m.stack[-1]),
    b"p": lambda m: m.put(int(m.stream.line())), b"q": lambda m: m.put(_u1(m)), b"r": lambda m: m.put(_u4(m)),
    b"\x94": lambda m: m.put(len(m.memo)),
    b"g": lambda m: m.stack.append(m.memo[int(m.stream.line())]), b"h": lambda m: m.stack.append(m.memo[_u1(m)]),
    b"j": lambda m: m.stack.append(m.memo[_u4(m)]),
    b"c": _global, b"\x93": _stack_global, b"i": _instance, b"o": _object, b"R": _reduce,
    b"\x81": _new, b"\x92": lambda m: _new(m, with_keywords=True), b"b": _build, b"Q": _persistent,
}  # fmt: skip
