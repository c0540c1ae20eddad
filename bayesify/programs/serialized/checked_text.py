"""The text of an exported program (torch.export's JSON): checked to be a graph of torch's operators, then built.

torch's own reader evaluates parts of that text as Python: symbolic sizes, guards, names in generated code, types that
it imports. Here every string in it must be of the one form that its place calls for, or the program is refused.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import keyword
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from enum import IntEnum
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ...errors import FileRefusedError
from .checked_strings import plain_structure, refuse_operator
from .kernel_calls import with_checks
from .symbolic_sizes import refuse_expression, refuse_many

if TYPE_CHECKING:
    from torch.export import ExportedProgram

_FREE_TEXT = {("Argument", "as_string"), ("Argument", "as_strings"), ("ConstantValue", "as_string")}
_ARGUMENT = ("NamedArgument", "name")  # of an operator, where "from" is one
_DIALECTS = ("ATEN", "TRAINING")
_MODULE = frozenset(dir(nn.Module()))


def pruned(text: str | bytes) -> str:
    """The program's text without what rebuilding it has no need of: guards, traces of source code, other metadata.

    Raises:
        FileRefusedError: it is not the text of an exported program.
    """
    try:
        program = json.loads(text)
        module = program["graph_module"]
        kept = {key: program[key] for key in ("opset_version", "range_constraints", "schema_version")}
        _prune_graph(module["graph"])
        with_checks(module["graph"])
        (root,) = (entry for entry in module["module_call_graph"] if entry["fqn"] == "")
        for spec in ("in_spec", "out_spec"):
            root["signature"][spec] = plain_structure(root["signature"][spec])
        kept["graph_module"] = {"graph": module["graph"], "signature": module["signature"], "module_call_graph": [root]}
        kept["verifiers"] = [name for name in program["verifiers"] if name in _DIALECTS] or ["TRAINING"]
        return json.dumps(kept)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise FileRefusedError(f"its program is damaged ({type(error).__name__}: {error}); export it again") from None


def build(text: str, tensors: Mapping[str, Tensor], constants: Mapping[str, Tensor]) -> ExportedProgram:
    """The exported program of a pruned text, around the given Parameters and buffers, and constants.

    Raises:
        FileRefusedError: the text holds what could run code, or what torch cannot rebuild.
    """
    from torch._export.serde import serialize

    try:
        record = refuse(text)
        reader = serialize.ExportedProgramDeserializer(None)
        program = reader.deserialize(record, dict(tensors), dict(constants), None)
        _refuse_misfit(program, {**tensors, **constants})
        return program
    except FileRefusedError:
        raise
    except Exception as error:
        # whatever torch's reader raises means only that the program is not one of this torch
        raise FileRefusedError(f"torch {torch.__version__} cannot rebuild its program: {first_line(error)}") from None


def _refuse_misfit(program: ExportedProgram, tensors: Mapping[str, Tensor]) -> None:
    """Hold the tensors to the sizes that the program has for them."""
    inputs = program.graph.find_nodes(op="placeholder")
    for node, spec in zip(inputs, program.graph_signature.input_specs, strict=True):
        given, expected = tensors.get(str(spec.target)), node.meta.get("val")
        if isinstance(given, Tensor) and isinstance(expected, Tensor) and given.shape != expected.shape:
            shape, told = tuple(given.shape), tuple(expected.shape)
            raise FileRefusedError(f"its {spec.target} has sizes {shape}, where its program has {told}; save it again")


def refuse(text: str) -> Any:
    """Torch's record of a pruned text.

    Raises:
        FileRefusedError: the text holds what could run code.
    """
    from torch._export.serde import schema, serialize

    record = serialize._dict_to_dataclass(schema.ExportedProgram, json.loads(text))  # type: ignore[no-untyped-call]
    _check(record, schema.ExportedProgram, ("", ""))
    refuse_many(_sizes(json.loads(text)))
    return record


def _sizes(value: Any) -> Iterator[str]:
    """The symbolic sizes in a program's JSON."""
    waiting = [value]
    while waiting:
        inside = waiting.pop()
        if isinstance(inside, dict):
            yield from [inside["expr_str"]] if isinstance(inside.get("expr_str"), str) else []
        if isinstance(inside, dict | list):
            waiting += inside.values() if isinstance(inside, dict) else inside


def first_line(error: Exception) -> str:
    """The error's class and first line."""
    lines = [line for line in str(error.__cause__ or error).strip().splitlines() if line]
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def _prune_graph(graph: dict[str, Any]) -> None:
    for node in graph["nodes"]:
        stack = node["metadata"].get("nn_module_stack")
        node["metadata"] = {"nn_module_stack": stack} if stack else {}
        for given in node["inputs"]:
            if "as_graph" in given["arg"]:
                _prune_graph(given["arg"]["as_graph"]["graph"])


def _check(value: Any, hint: Any, place: tuple[str, str]) -> None:
    """Hold a value to the type that the schema gives its place, and a string to the form that the place calls for."""
    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        _check(value, inside[0], place)
    elif origin in (typing.Union, types.UnionType):
        if value is not None:
            _check(value, next(option for option in inside if option is not type(None)), place)
    elif origin is list and isinstance(value, list):
        for item in value:
            _check(item, inside[0], place)
    elif origin is dict and isinstance(value, dict):
        for key, item in value.items():
            _check_text(key, (place[0], f"{place[1]} key"))
            _check(item, inside[1], place)
    elif dataclasses.is_dataclass(hint) and isinstance(value, hint):  # type: ignore[arg-type]
        _check_record(value)
    elif hint is str and type(value) is str:
        _check_text(value, place)
    elif not _is_number(value, hint):
        raise FileRefusedError(f"its program is damaged: {'.'.join(place)} cannot be {str(value)[:80]!r}")


def _is_number(value: Any, hint: Any) -> bool:
    if hint is float:
        return type(value) in (int, float)
    if isinstance(hint, type) and issubclass(hint, IntEnum):
        return type(value) is int and value in hint._value2member_map_
    return hint in (int, bool) and type(value) is hint


def _check_record(record: Any) -> None:
    name = type(record).__name__
    if name in ("CustomObjArgument", "InputToCustomObjSpec", "InputTokenSpec"):
        raise FileRefusedError("its program uses a custom object, which could run code when opened; refused")
    cls: Any = type(record)
    for field, hint in _hints(cls).items():
        value = record.__dict__.get(field) if hasattr(record, "_type") else getattr(record, field)
        if not hasattr(record, "_type") or field == str(record.type):
            _check(value, hint, (name, field))


@functools.cache
def _hints(cls: Any) -> dict[str, Any]:
    from torch._export.serde import schema

    return typing.get_type_hints(cls, globalns=vars(schema))


def _check_text(text: str, place: tuple[str, str]) -> None:
    if place in _FREE_TEXT or place == ("Node", "metadata"):
        return
    check = _FORMS.get(place)
    if check is not None:
        check(text)
    elif not re.fullmatch(r"([A-Za-z_]\w*)?", text, re.ASCII) or (keyword.iskeyword(text) and place != _ARGUMENT):
        raise FileRefusedError(f"its program holds {text[:80]!r} where a name should stand; refused")


def _refuse_path(path: str) -> None:
    """A dotted name of a Parameter or buffer: of modules and their attributes, and none that every module has."""
    parts = path.split(".")
    if not re.fullmatch(r"\w+(\.\w+)*", path, re.ASCII) or any(part in _MODULE or part[:2] == "__" for part in parts):
        raise FileRefusedError(f"its program names a weight {path[:80]!r}, which no module can have; refused")


def _refuse_structure(text: str) -> None:
    if plain_structure(text) != text:
        raise FileRefusedError("the structure of its inputs or outputs is not plain; refused")


def _refuse_inputs(text: str) -> None:
    """As `_refuse_structure`; the names of keyword arguments stand in generated code too."""
    _refuse_structure(text)
    for part in json.loads(text)[1]["children_spec"]:
        for name in json.loads(part["context"] or "null") or []:
            _check_text(str(name), ("ModuleCallSignature", "in_spec key"))


_FORMS: dict[tuple[str, str], Callable[[str], None]] = {
    ("Node", "target"): refuse_operator,
    ("Argument", "as_operator"): refuse_operator,
    ("SymExpr", "expr_str"): refuse_expression,
    ("ModuleCallSignature", "in_spec"): _refuse_inputs,
    ("ModuleCallSignature", "out_spec"): _refuse_structure,
    ("ExportedProgram", "torch_version"): lambda text: None,
    ("InputToParameterSpec", "parameter_name"): _refuse_path,
    ("InputToBufferSpec", "buffer_name"): _refuse_path,
    ("InputToTensorConstantSpec", "tensor_constant_name"): _refuse_path,
    ("BufferMutationSpec", "buffer_name"): _refuse_path,
    ("ParameterMutationSpec", "parameter_name"): _refuse_path,
}
