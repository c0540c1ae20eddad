"""From inert nodes to a model: modules by `__new__`, then their parts and attributes, each held to a rule of ours."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import Parameter

from ...errors import FileRefusedError
from ...programs.program import rebuilt
from .attributes import refuse_attribute, setters
from .builder import Builder, refuse_extras
from .container_rules import CONTAINER_RULES
from .content import NO_ALLOW, SHORT
from .everyday_rules import EVERYDAY_RULES
from .global_names import Name, words
from .hook_rules import HOOK_RULES, HOOK_TABLES, Hooks, refuse_hooks_without_parts
from .module_kinds import refuse_missing_parameters, refuse_wrong_kinds
from .nodes import Call
from .plain_objects import CALLED, attribute_name, enum_member, fresh, pairs_of, plain_object
from .storages import Storages
from .tensor_rules import TENSOR_RULES
from .trust import Trusted

_NEVER = words("_compiled_call_impl all_weights")

# Of torch's own layers that restore their state by code, which only fills in what older versions did not save, and of
# recurrent ones, which rebuild their list of references to their weights.
_SETTERS = words("""
    torch.nn.modules.module.Module torch.nn.modules.conv._ConvNd torch.nn.modules.pooling.AvgPool3d
    torch.nn.modules.rnn.RNNBase torch.nn.modules.upsampling.Upsample torch.nn.modules.activation.MultiheadAttention
    torch.nn.modules.activation.Softmin torch.nn.modules.activation.Softmax torch.nn.modules.activation.LogSoftmax
    torch.nn.modules.transformer.TransformerEncoderLayer torch.nn.modules.transformer.TransformerDecoderLayer
    timm.layers.ml_decoder.TransformerDecoderLayerOptimal
""")
_MOST_NAMES = 1_000_000  # of modules, a shared one counted under every name


def _program(builder: Builder, node: Call) -> nn.Module:
    """A converted program, by the text of its graph and its state."""
    refuse_extras(node)
    text, state = builder.args(node, 2)
    if not isinstance(text, str) or not isinstance(state, dict):
        raise FileRefusedError(f"has a program that cannot be; {SHORT}")
    try:
        return rebuilt(text, state)
    except (KeyError, TypeError, AttributeError, ValueError, AssertionError, RuntimeError) as error:
        if isinstance(error, FileRefusedError):
            raise
        raise FileRefusedError(f"has a program that does not fit its state; {SHORT}") from None


_PROGRAM_RULES = {"bayesify.programs.rebuilt": _program}


class ModelBuilder(Builder):
    """Builds modules and plain objects of the classes that are trusted, and nothing else.

    `path` names the layer that is being built, for messages.
    """

    rules = TENSOR_RULES | CONTAINER_RULES | EVERYDAY_RULES | HOOK_RULES | _PROGRAM_RULES

    def __init__(self, storages: Storages, trusted: Mapping[Name, Trusted]) -> None:
        super().__init__(storages)
        self.trusted = trusted
        self.path: list[str] = []
        self.hooks = Hooks()

    def name(self, name: Name) -> Any:
        """A class, a function or a constant that is stored."""
        target = self.trusted[name].target
        if target is None:
            raise FileRefusedError(f"stores {name}, which saved models only call; {NO_ALLOW}")
        return target

    def object(self, node: Call) -> Any:
        """An object of a trusted class, or what a rule makes of a call."""
        if not isinstance(node.maker, Name):
            raise FileRefusedError(f"calls what a call returned, {_MISUSE}")
        name, trusted = node.maker, self.trusted[node.maker]
        if trusted.role == "enum" and not node.new:
            return enum_member(self, trusted.target, node)
        if trusted.role == "call" and trusted.target is not None and not node.new:
            refuse_extras(node)
            return trusted.target(*(bool(arg) for arg in self.args(node, 0, 1)))
        if trusted.role not in ("module", "plain") or not (node.new or issubclass(trusted.target, CALLED)):
            raise FileRefusedError(f"calls {name}, {_MISUSE}")
        make = self._module if trusted.role == "module" else functools.partial(plain_object, self)
        return make(trusted.target, node)

    def _module(self, cls: Any, node: Call) -> nn.Module:
        made = self.keep(node, fresh(cls))
        if self.args(node, 0) or node.items or node.pairs:
            raise FileRefusedError(f"fills a {cls.__name__} like a list or a dict; {SHORT}")
        template = vars(nn.Module())
        made.__dict__.update(template)
        given: dict[str, None] = {}
        for key, value in pairs_of(node.state, f"the state of a {cls.__name__}"):
            name = attribute_name(self, cls, key)
            given[name] = None
            if name in ("_parameters", "_buffers", "_modules") or name in HOOK_TABLES:
                self._fill(made, name, value)
            else:
                refuse_attribute(cls, name)
                made.__dict__[name] = self._attribute(cls, name, value)
        self._check_module(made, given)
        return made  # type: ignore[no-any-return]

    def _attribute(self, cls: type, name: str, node: Any) -> Any:
        value = self.value(node)
        if name in _NEVER and value is not None:
            raise FileRefusedError(f"gives a {cls.__name__} the attribute {name!r}, which is never saved; refused")
        if name == "_non_persistent_buffers_set" and not _all(value, set, str):
            raise FileRefusedError(f"has a {cls.__name__} whose {name} is not a set of names; {SHORT}")
        if name in ("training", "_is_full_backward_hook") and not isinstance(value, bool | None):
            raise FileRefusedError(f"has a {cls.__name__} whose {name} is neither true nor false; {SHORT}")
        return value

    def _fill(self, made: Any, table: str, node: Any) -> None:
        """One of a module's own dicts: of Parameters, buffers, children or hooks."""
        cls, pairs = type(made), pairs_of(node, f"{table} of a {type(made).__name__}")
        if id(node) in self._made:
            raise FileRefusedError(f"has a {cls.__name__} that shares its {table} with another module; refused")
        kept = self.keep(node, made.__dict__[table])
        for key, value in pairs:
            name = self.value(key)
            if table in HOOK_TABLES:
                kept[self.hooks.number(name)] = self.hooks.hook(self.value(value), table)
                continue
            if not isinstance(name, str) or not name or "." in name:
                raise FileRefusedError(f"has a {cls.__name__} with a part named {str(name)[:80]!r}; {SHORT}")
            refuse_attribute(cls, name)
            self.path.append(name)
            kept[name] = part = self.value(value)
            kind = _PARTS[table]
            if part is not None and not isinstance(part, kind):
                raise FileRefusedError(f"is a {type(part).__name__}, where a {kind.__name__} should be; {SHORT}")
            self.path.pop()

    def _check_module(self, made: nn.Module, given: Mapping[str, None]) -> None:
        cls = type(made)
        for table in _PARTS:
            if table not in given:
                raise FileRefusedError(f"has a {cls.__name__} without its {table}; {SHORT}")
        refuse_wrong_kinds(made)
        refuse_missing_parameters(made)
        refuse_hooks_without_parts(made)
        for owner in setters(cls):
            if f"{owner.__module__}.{owner.__qualname__}" not in _SETTERS:
                raise FileRefusedError(
                    f"holds a {cls.__name__}, which restores itself by code of its own (__setstate__); build the model "
                    "by its code and give it the file's weights: bayesify.load(FILE, into=model)"
                )
        state: Any = dict(vars(made))
        try:
            if isinstance(made, nn.RNNBase) and not isinstance(state["_all_weights"][0][0], str):
                raise TypeError
            if next(setters(cls)) is not nn.Module:
                cls.__setstate__(made, state)  # type: ignore[no-untyped-call]
        except (TypeError, AttributeError, KeyError, IndexError, ValueError):
            raise FileRefusedError(f"has a {cls.__name__} that cannot be; {SHORT}") from None

def refuse_endless(model: nn.Module) -> None:
    """Refuse a module that is inside of itself, or modules that are shared under endlessly many names.

    Raises:
        FileRefusedError: either.
    """
    names: dict[int, int] = {}
    waiting: list[tuple[nn.Module, bool]] = [(model, False)]
    while waiting:
        module, inside_done = waiting.pop()
        inner = [child for child in module._modules.values() if child is not None]
        if inside_done:
            names[id(module)] = 1 + sum(names[id(child)] for child in inner)
            continue
        if names.setdefault(id(module), -1) != -1:
            continue
        waiting.append((module, True))
        for child in inner:
            if names.get(id(child)) == -1:
                raise FileRefusedError("has a module that is inside of itself; refused")
            waiting.append((child, False))
    if names[id(model)] > _MOST_NAMES:
        raise FileRefusedError("shares its modules so often that they have more names than any model; refused")


def _all(value: Any, container: type, kind: type) -> bool:
    items: Any = value if isinstance(value, container) else [None]
    return all(isinstance(item, kind) for item in items)


_MISUSE = f"which saved models never do; {NO_ALLOW}"
_PARTS: dict[str, type] = {"_parameters": Parameter, "_buffers": Tensor, "_modules": nn.Module}
