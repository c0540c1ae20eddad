"""Files that mean harm, or that nobody would write, by generators over all that the reader and the builder allow."""

import itertools

from torch import nn

from bayesify.files.untrusted.model_builder import ModelBuilder
from bayesify.files.untrusted.trust import KNOWN
from tests.files.hostile_bytes import bombs, streams, tensors, zips
from tests.files.hostile_inputs import inputs
from tests.files.pickle_text import EMPTY, RELU, TENSOR, Files, P, holding, module, name

PARTIAL = name("functools.partial").call(name("torch.nn.modules.linear.Linear")).build(
    (name("torch.nn.modules.linear.Linear"), (2, 2), {}, None)
)  # fmt: skip

HOLDERS = {
    "module": lambda state: module(**state),
    "layer": lambda state: module("torch.nn.modules.linear.Linear", in_features=1, out_features=1, **state),
    "OrderedDict": lambda state: holding(name("collections.OrderedDict").call().build(state)),
    "tensor": lambda state: holding(
        name("torch._tensor._rebuild_from_type_v2").call(
            name("torch._utils._rebuild_meta_tensor_no_storage"), name("torch.Tensor"),
            (name("torch.float32"), (2,), (1,), False), state,
        )
    ),
    "Parameter": lambda state: holding(
        name("torch._utils._rebuild_parameter_with_state").call(
            TENSOR, True, name("collections.OrderedDict").call(), state
        )
    ),
    "settings": lambda state: holding(name("bayesify.nn.Settings").new().build(state)),
    "ledger": lambda state: holding(name("bayesify.nn.Ledger").new().build(state)),
    "a hook": lambda state: module(
        _forward_pre_hooks={0: name("torch.nn.utils.prune.Identity").new().build({"_tensor_name": "w", **state})}
    ),
    "Namespace": lambda state: holding(name("argparse.Namespace").new().build(state)),
    "SimpleNamespace": lambda state: holding(name("types.SimpleNamespace").call().build(state)),
    "dict": lambda state: holding(P(b"}").build(state)),
    "list": lambda state: holding(P(b"]").build(state)),
    "function": lambda state: holding(RELU.build(state)),
    "class": lambda state: holding(name("torch.nn.modules.linear.Linear").build(state)),
    "partial": lambda state: holding(P(PARTIAL.text).build(state)),
    "handle": lambda state: holding(name("torch.utils.hooks.RemovableHandle").new().build(state)),
    "deque": lambda state: holding(name("collections.deque").call().build(state)),
}  # fmt: skip
PLAIN = ("Namespace", "SimpleNamespace", "a hook")  # whose classes have no methods to stand before
SHADOWS = [
    "__setstate__", "__reduce__", "__reduce_ex__", "__deepcopy__", "__copy__", "__class__", "__dict__", "__call__",
    "__getattr__", "__getattribute__", "__del__", "__wrapped__", "forward", "_compiled_call_impl", "train",
    "named_modules", "state_dict", "register_forward_hook", "_call_impl", "extra_repr", "__repr__",
]  # fmt: skip


def shadows() -> Files:
    """Attributes that stand before a class's methods, on everything that can hold attributes."""
    for (holder, make), attribute in itertools.product(HOLDERS.items(), SHADOWS):
        if holder not in PLAIN or attribute.startswith("__"):
            yield f"{attribute} = a function on {holder}", make({attribute: RELU}).file()
    for holder, make in HOLDERS.items():
        yield f"__setstate__ = a partial on {holder}", make({"__setstate__": PARTIAL}).file()


def twice() -> Files:
    """The gadget of the audit: a state that sets `__setstate__`, and a second one that would call it."""
    for cls in ("torch.nn.modules.linear.Identity", "bayesify.nn.Ledger", "argparse.Namespace"):
        made = name(cls).new().build({**EMPTY, "x": 1}).build({"y": 2})
        yield f"{cls} with two states", holding(made).file()


def constructors() -> Files:
    """Every module class of torch that is called, and not only made."""
    for cls in vars(nn).values():
        if isinstance(cls, type) and issubclass(cls, nn.Module):
            dotted = f"{cls.__module__}.{cls.__qualname__}"
            yield f"a call of {dotted}", holding(name(dotted).call(2, 2)).file()


VALUES = [
    (), (None,), (1,), ("x",), (-1, 1 << 70, "x"), ([],), ({},), ((),), (RELU,), (PARTIAL, PARTIAL),
    (b"\xff" * 9,), (1e308, float("nan")), ("x", {}, [], ()), (1 << 62,) * 4,
    (name("torch.float32"), (2,), (1,), False), (TENSOR, True, {}), (TENSOR,) * 4, ("9" * 999,), ("1e9999999",),
    ("../../x",), (name("torch.nn.modules.linear.Linear"),),
]  # fmt: skip
WITH_STATE = (0, 3, 6, 9, 13)


def rules() -> Files:
    """Every rule of the builder, and every name that it knows, with arguments and states that nothing writes."""
    for dotted in sorted({*ModelBuilder.rules, *KNOWN}):
        for number, args in enumerate(VALUES):
            made = name(dotted).call(*args)
            yield f"{dotted} of arguments {number}", holding(made).file()
            if number in WITH_STATE:
                yield f"{dotted} of arguments {number} with a state", holding(made.build(args or {"x": 1})).file()
                yield f"{dotted} made of {number}", holding(name(dotted).new(*args)).file()
        yield f"{dotted} stored", holding(name(dotted)).file()
        yield f"{dotted} as a hook", module(_forward_hooks={0: name(dotted)}).file()
        yield f"{dotted} as a module", module(_modules={"a": name(dotted)}).file()


def structures() -> Files:
    """Modules whose parts are not what they should be."""
    linear = "torch.nn.modules.linear.Linear"
    yield "no state", name(linear).new().file()
    yield "a state that is a text", name(linear).new().build("x").file()
    yield "a state that is a list", name(linear).new().build([1]).file()
    yield "no tables", name(linear).new().build({"training": True}).file()
    for table in ("_parameters", "_buffers", "_modules", "_forward_hooks", "_forward_pre_hooks", "_state_dict_hooks"):
        for kind, value in {"None": None, "text": "x", "number": 3, "list": [1], "function": RELU}.items():
            yield f"{table} is a {kind}", module(linear, **{table: value}).file()
        for kind, value in {"text": "x", "number": 3, "function": RELU, "partial": PARTIAL, "list": []}.items():
            yield f"{table} holds a {kind}", module(linear, **{table: {"weight": value}}).file()
        yield f"{table} has a number for a name", module(linear, **{table: {3: None}}).file()
        yield f"{table} has a dotted name", module(linear, **{table: {"a.b": None}}).file()
        yield f"{table} has a name of Python's", module(linear, **{table: {"__class__": None}}).file()
    yield "a weight that is a text", module(linear, weight="x").file()
    yield "a weight that is a list", module(linear, weight=[1.0]).file()
    yield "a layer without its weight", module(linear, in_features=1, out_features=1).file()
    yield "a layer whose weight is None", module(linear, _parameters={"weight": None, "bias": None}).file()
    yield "names of buffers that are numbers", module(_non_persistent_buffers_set=name("builtins.set").call([3])).file()
    yield "training that is a text", module(training="x").file()
    yield "training that is a module", module(training=module()).file()
    yield "an attribute without a name", name(linear).new().build({**EMPTY, 3: 4}).file()
    for kind, key in {"set": name("builtins.set").call([]), "dict": P(b"}")}.items():
        yield f"an attribute named by a {kind}", P(name(linear).new().text + b"}" + key.text + b"Nsb").file()
    yield "a child that is a dict", module(_modules={"a": {}}).file()
    yield "a recurrent layer without weights", module("torch.nn.modules.rnn.LSTM", mode="LSTM").file()
    yield "a recurrent layer of endless layers", module(
        "torch.nn.modules.rnn.LSTM", _all_weights=[[1]], num_layers=1 << 40, bidirectional=False, bias=True, proj_size=0
    ).file()  # fmt: skip
    itself = P.of({**EMPTY, "_modules": {"a": P(b"h\x01")}})
    made = name("torch.nn.modules.linear.Identity").new()
    yield "a module in itself", P(made.text + b"q\x01" + itself.text + b"b").file()
    yield "a list of itself in a tuple", holding(P(b"]q\x01h\x01\x85a")).file()
    yield "a script class", name("torch.jit._script.RecursiveScriptModule").new().build(EMPTY).file()
    yield "a graph", name("torch.fx.graph_module.GraphModule").new().build(EMPTY).file()
    yield "a distributed wrapper", module("torch.nn.parallel.distributed.DistributedDataParallel").file()


OPENS = ("load", "read_weights")
GENERATORS = {
    **dict.fromkeys((shadows, twice, constructors, rules, structures, bombs, tensors, zips, streams), OPENS),
    inputs: ("batch",),
}
