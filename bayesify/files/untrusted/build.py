"""From inert nodes to objects: containers and tensors, by rules of ours. What else there is, a subclass decides."""

from __future__ import annotations

import enum
import pathlib
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import Parameter

from ...errors import FileRefusedError
from .content import SHORT
from .global_names import Name, words
from .nodes import Call, Dict, Persistent, Set
from .storages import Storages
from .tensors import Tensors, parameter, with_gradient, with_marks

PLAIN = (type(None), bool, int, float, complex, str, bytes)
_KEYS = (*PLAIN, enum.Enum, torch.dtype, torch.device, type, pathlib.PurePath, Tensor)
_ITSELF = "has an object that is made of itself; refused"


class Builder:
    """Builds the values of one file's nodes: each node once, so that what the file shares is shared."""

    def __init__(self, storages: Storages) -> None:
        self.tensors = Tensors(storages)
        self._made: dict[int, Any] = {}
        self._open: set[int] = set()

    def value(self, node: Any) -> Any:
        """The value of a node.

        Raises:
            FileRefusedError: it is not one that may be built.
        """
        if isinstance(node, PLAIN):
            return node
        if id(node) in self._made:
            return self._made[id(node)]
        if id(node) in self._open:
            raise FileRefusedError(_ITSELF)
        self._open.add(id(node))
        made = self._value(node)
        self._open.remove(id(node))
        return self.keep(node, made)

    def keep(self, node: Any, made: Any) -> Any:
        """Let the node stand for this value from now on, also inside of itself: what it holds may lead back to it."""
        self._made[id(node)] = made
        return made

    def args(self, node: Call, least: int = 0, most: int | None = None) -> list[Any]:
        """The values of a call's arguments.

        Raises:
            FileRefusedError: there are fewer or more of them, keywords, or a state or items that the call has not.
        """
        count = len(node.args)
        strange = node.kwargs and node.kwargs.pairs
        if not least <= count <= (least if most is None else most) or strange:
            raise FileRefusedError(f"calls {node.maker} as saved files never do; {SHORT}")
        return [self.value(arg) for arg in node.args]

    def name(self, name: Name) -> Any:
        """The value of a global that is only stored."""
        raise NotImplementedError

    def object(self, node: Call) -> Any:
        """An object of a class that is not torch's tensor or a plain container."""
        raise NotImplementedError

    def _value(self, node: Any) -> Any:
        if isinstance(node, list):
            made: list[Any] = self.keep(node, [])
            made += [self.value(item) for item in node]
            return made
        if isinstance(node, tuple):
            return tuple(self.value(item) for item in node)
        if isinstance(node, bytearray):
            return bytearray(node)
        if isinstance(node, Dict):
            return self.fill(self.keep(node, {}), node.pairs)
        if isinstance(node, Set):
            items = [key_of(self.value(item)) for item in node.items]
            return frozenset(items) if node.frozen else set(items)
        if isinstance(node, Name):
            return self.name(node)
        if isinstance(node, Persistent):
            return self.tensors.storages.typed(node)
        assert isinstance(node, Call)
        call = CALLS.get(str(node.maker)) if isinstance(node.maker, Name) else None
        return call(self, node) if call is not None else self.object(node)

    def fill(self, made: Any, pairs: list[tuple[Any, Any]]) -> Any:
        """Put key and value pairs into a dict."""
        for key, value in pairs:
            made[key_of(self.value(key))] = self.value(value)
        return made


def key_of(value: Any) -> Any:
    """The value, as a key of a dict or a member of a set.

    Raises:
        FileRefusedError: it cannot be one, or its hash is one of those by which a file could make a dict slow.
    """
    if isinstance(value, tuple | frozenset):
        for part in value:
            key_of(part)
    elif not (isinstance(value, _KEYS) or getattr(type(value), "is_key", False)):
        raise FileRefusedError(f"has a dict or a set with a {type(value).__name__} for a key; {SHORT}")
    elif isinstance(value, int) and abs(value) >= (1 << 61) - 1:
        raise FileRefusedError("has a dict or a set with larger numbers for keys than any that is used; refused")
    return value


def refuse_extras(node: Call) -> None:
    """Refuse a state or items for what has none.

    Raises:
        FileRefusedError: there are some.
    """
    if node.state is not None or node.items or node.pairs:
        raise FileRefusedError(f"changes what {node.maker} returned, as saved files never do; refused")


def _tensor(builder: Builder, node: Call) -> Tensor:
    """`_rebuild_tensor(storage, offset, size, stride)` and its successors, which take more."""
    refuse_extras(node)
    memory, offset, size, stride, *more = builder.args(node, 4, 8)
    assert isinstance(node.maker, Name)
    later = node.maker.qualname.rpartition("_")[2]
    requires_grad, hooks, *rest = more if later in ("v2", "v3") and len(more) > 1 else (False, None)
    dtype = rest.pop(0) if later == "v3" and rest else None
    if hooks or len(rest) > 1:
        raise FileRefusedError(f"has hooks on a tensor, which torch never saves; {SHORT}")
    made = builder.tensors.strided(memory, offset, size, stride, dtype)
    return with_gradient(with_marks(made, rest[0] if rest else None), requires_grad)


def _parameter(builder: Builder, node: Call) -> Any:
    refuse_extras(node)
    data, requires_grad, hooks, *state = builder.args(node, 3, 4)
    if hooks:
        raise FileRefusedError(f"has hooks on a Parameter, which torch never saves; {SHORT}")
    return _with_state(parameter(data, requires_grad), state[0] if state else None)


def _bare_parameter(builder: Builder, node: Call) -> Parameter:
    """`Parameter(data, requires_grad)`, as torch wrote it once."""
    refuse_extras(node)
    data, requires_grad = (*builder.args(node, 1, 2), True)[:2]
    return parameter(data, requires_grad)


def _of_type(builder: Builder, node: Call) -> Any:
    """`_rebuild_from_type_v2(function, type, args, state)`: a tensor of a subclass, or with attributes of its own."""
    refuse_extras(node)
    if len(node.args) != 4:
        raise FileRefusedError(f"calls {node.maker} as saved files never do; {SHORT}")
    function, kind, args, state = node.args
    if not isinstance(function, Name) or str(function) not in CALLS or "._rebuild_" not in str(function):
        raise FileRefusedError(
            f"calls {function if isinstance(function, Name) else 'what it made'} by way of {node.maker}, which saved "
            "models never do; refused, and no --allow lifts this"
        )
    if not isinstance(kind, Name) or str(kind) not in _TENSOR_TYPES or not isinstance(args, tuple):
        raise FileRefusedError(f"has a tensor of the class {kind}, which is not torch's own; save it as a plain tensor")
    made = builder.value(Call(function, args, new=False))
    if str(kind).endswith(".Parameter") and not isinstance(made, Parameter):
        made = parameter(made, made.requires_grad)
    return _with_state(made, builder.value(state))


def _with_state(tensor: Any, state: Any) -> Any:
    """The tensor with plain attributes of its own."""
    if isinstance(state, tuple) and len(state) == 2 and not state[1]:
        state = state[0]
    for name, value in (state or {}).items() if isinstance(state, Mapping | None) else [(None, None)]:
        if not isinstance(name, str) or name.startswith("__") or hasattr(Tensor, name) or not is_data(value):
            raise FileRefusedError(f"has a tensor with an attribute {str(name)[:80]!r}, which it cannot carry; refused")
        setattr(tensor, name, value)
    return tensor


def is_data(value: Any, depth: int = 0) -> bool:
    """Whether a value is plain: numbers, texts, tensors, and containers of them."""
    if isinstance(value, list | tuple | set | frozenset):
        return depth < 8 and all(is_data(item, depth + 1) for item in value)
    if isinstance(value, dict):
        return depth < 8 and all(is_data(item, depth + 1) for item in value.values())
    return isinstance(value, (*PLAIN, Tensor, torch.dtype, torch.device, torch.Size))


def _sparse(builder: Builder, node: Call) -> Tensor:
    refuse_extras(node)
    return builder.tensors.sparse(*builder.args(node, 2))


def _meta(builder: Builder, node: Call) -> Tensor:
    refuse_extras(node)
    dtype, size, stride, requires_grad = builder.args(node, 4)
    return with_gradient(builder.tensors.on_meta(dtype, size, stride), requires_grad)


def _moved(builder: Builder, node: Call) -> Tensor:
    """A tensor of a device whose memory torch saves by way of the CPU's: here it stays there."""
    refuse_extras(node)
    data, dtype, _, requires_grad = builder.args(node, 4)
    if not isinstance(data, Tensor) or data.dtype != dtype:
        raise FileRefusedError(f"describes a tensor that cannot be; {SHORT}")
    return with_gradient(data.detach(), requires_grad)


def _ordered_dict(builder: Builder, node: Call) -> Any:
    made: Any = builder.keep(node, OrderedDict())
    for items in builder.args(node, 0, 1):
        pairs = items.items() if isinstance(items, dict) else items
        made.update((key_of(key), value) for key, value in _pairs(pairs))
    builder.fill(made, node.pairs)
    state = builder.value(node.state)
    if isinstance(state, Mapping) and set(state) <= {"_metadata"} and not node.items:
        made.__dict__.update(state)
    elif state is not None or node.items:
        raise FileRefusedError(f"has an OrderedDict with attributes, as torch never saves; {SHORT}")
    return made


def _default_dict(builder: Builder, node: Call) -> Any:
    factory = (*builder.args(node, 0, 1), None)[0]
    if factory is not None and factory not in (list, dict, set, int, float, str, bool):
        factory = None  # a default is left out, not the items: what an absent key gives is code
    made = builder.keep(node, defaultdict(factory))
    refuse_extras_but_pairs(node)
    return builder.fill(made, node.pairs)


def refuse_extras_but_pairs(node: Call) -> None:
    """As `refuse_extras`, for what is filled like a dict.

    Raises:
        FileRefusedError: there is a state, or a list's items.
    """
    if node.state is not None or node.items:
        raise FileRefusedError(f"changes what {node.maker} returned, as saved files never do; refused")


def _counter(builder: Builder, node: Call) -> Any:
    refuse_extras_but_pairs(node)
    made = builder.keep(node, Counter())
    for counts in builder.args(node, 0, 1):
        dict.update(made, counts if isinstance(counts, dict) else {})
    return builder.fill(made, node.pairs)


def _set(builder: Builder, node: Call) -> Any:
    refuse_extras(node)
    items = (*builder.args(node, 0, 1), [])[0]
    if not isinstance(items, list | tuple | set):
        raise FileRefusedError(f"has a set of what is not a list; {SHORT}")
    keys = [key_of(item) for item in items]
    return set(keys) if str(node.maker) == "builtins.set" else frozenset(keys)


def _pairs(items: Any) -> list[Any]:
    pairs = list(items) if not isinstance(items, str | bytes) else []
    if not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
        raise FileRefusedError(f"has a dict of what are not pairs; {SHORT}")
    return pairs


def _complex(builder: Builder, node: Call) -> complex:
    refuse_extras(node)
    return complex(*(float(part) for part in _of(builder.args(node, 0, 2), int | float)))


def _encoded(builder: Builder, node: Call) -> bytes:
    """`_codecs.encode(text, "latin1")`: how protocol 2 writes bytes."""
    refuse_extras(node)
    text, *coding = builder.args(node, 1, 2)
    if not isinstance(text, str) or coding not in (["latin1"], ["latin-1"]):
        raise FileRefusedError(f"has bytes that are not written as pickles write them; {SHORT}")
    return text.encode("latin1")


def _bytes(builder: Builder, node: Call) -> Any:
    refuse_extras(node)
    given = (*builder.args(node, 0, 2), b"")[0]
    if not isinstance(given, bytes | bytearray | str):
        raise FileRefusedError(f"has bytes that are not written as pickles write them; {SHORT}")
    content = given.encode("latin1") if isinstance(given, str) else bytes(given)
    return bytearray(content) if str(node.maker).endswith("bytearray") else content


def _size(builder: Builder, node: Call) -> torch.Size:
    refuse_extras(node)
    (sizes,) = builder.args(node, 1)
    return torch.Size(_of(sizes if isinstance(sizes, tuple | list) else [None], int))


def _device(builder: Builder, node: Call) -> torch.device:
    refuse_extras(node)
    kind, *index = _of(builder.args(node, 1, 2), str | int)
    try:
        return torch.device(kind, *index) if index else torch.device(kind)
    except RuntimeError:
        raise FileRefusedError(f"has a device {str(kind)[:40]!r}, which torch has not") from None


def _layout(builder: Builder, node: Call) -> torch.layout:
    refuse_extras(node)
    (name,) = builder.args(node, 1)
    found = getattr(torch, name.removeprefix("torch."), None) if isinstance(name, str) else None
    if not isinstance(found, torch.layout):
        raise FileRefusedError(f"has a layout that torch has not; {SHORT}")
    return found


def _of(values: Any, kind: Any) -> Any:
    if not all(isinstance(value, kind) for value in values):
        raise FileRefusedError(f"has an object that is not made of what it should be; {SHORT}")
    return values


_TENSOR_TYPES = words("torch.Tensor torch._C.TensorBase torch.nn.parameter.Parameter torch.nn.parameter.Buffer")

# What may be called for tensors and plain containers, and what is done in the place of each.
CALLS: dict[str, Callable[[Builder, Call], Any]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch.nn.parameter.Parameter": _bare_parameter,
    "torch._tensor._rebuild_from_type_v2": _of_type,
    "torch._utils._rebuild_sparse_tensor": _sparse,
    "torch._utils._rebuild_meta_tensor_no_storage": _meta,
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": _moved,
    "torch.serialization._get_layout": _layout,
    "torch.Size": _size,
    "torch.device": _device,
    "collections.OrderedDict": _ordered_dict,
    "collections.defaultdict": _default_dict,
    "collections.Counter": _counter,
    "builtins.set": _set,
    "builtins.frozenset": _set,
    "builtins.complex": _complex,
    "builtins.bytes": _bytes,
    "builtins.bytearray": _bytes,
    "_codecs.encode": _encoded,
}
