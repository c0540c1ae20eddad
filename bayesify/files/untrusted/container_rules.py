"""What is done in the place of calls that make containers and plain values of Python."""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict
from collections.abc import Mapping
from typing import Any

from ...errors import FileRefusedError
from .builder import Builder, Rule, all_of, refuse_extras
from .content import SHORT
from .keys import keys_of
from .nodes import Call


def _ordered_dict(builder: Builder, node: Call) -> Any:
    made: Any = builder.keep(node, OrderedDict())
    for items in builder.args(node, 0, 1):
        pairs = items.items() if isinstance(items, dict) else items
        keys, values = zip(*_pairs(pairs), strict=True) if pairs else ((), ())
        made.update(zip(keys_of(keys), values, strict=True))
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
    _refuse_extras_but_pairs(node)
    return builder.fill(made, node.pairs)


def _refuse_extras_but_pairs(node: Call) -> None:
    """As `refuse_extras`, for what is filled like a dict."""
    if node.state is not None or node.items:
        raise FileRefusedError(f"changes what {node.maker} returned, as saved files never do; refused")


def _counter(builder: Builder, node: Call) -> Any:
    _refuse_extras_but_pairs(node)
    made = builder.keep(node, Counter())
    for counts in builder.args(node, 0, 1):
        dict.update(made, counts if isinstance(counts, dict) else {})
    return builder.fill(made, node.pairs)


def _set(builder: Builder, node: Call) -> Any:
    refuse_extras(node)
    items = (*builder.args(node, 0, 1), [])[0]
    if not isinstance(items, list | tuple | set):
        raise FileRefusedError(f"has a set of what is not a list; {SHORT}")
    keys = keys_of(items)
    return set(keys) if str(node.maker) == "builtins.set" else frozenset(keys)


def _pairs(items: Any) -> list[Any]:
    pairs = list(items) if not isinstance(items, str | bytes) else []
    if not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
        raise FileRefusedError(f"has a dict of what are not pairs; {SHORT}")
    return pairs


def _complex(builder: Builder, node: Call) -> complex:
    refuse_extras(node)
    return complex(*(float(part) for part in all_of(builder.args(node, 0, 2), int | float)))


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


CONTAINER_RULES: dict[str, Rule] = {
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
