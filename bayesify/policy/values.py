"""The values in a policy: how each kind is read, refused with a sentence, written back and described to an editor.

pydantic calls the readers. What they raise is a whole sentence, so that no user meets a message about union members.
"""

from __future__ import annotations

import math
import reprlib
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from ..distributions.scale import Scale
from ..errors import did_you_mean
from .selectors import LONGEST, SelectorError, check_syntax

METHODS = ("flipout", "lrt", "keep")
MEANS = ("zero", "pretrained", "auto")
FAMILIES = ("normal", "scale_mixture", "log_uniform")

MethodName = Literal["flipout", "lrt", "keep"]
Family = Literal["normal", "scale_mixture", "log_uniform"]
Json = dict[str, Any]

_SHORT = reprlib.Repr()
_SHORT.maxstring = 80


@dataclass(frozen=True)
class Reads:
    """An annotation that tells pydantic how a value is read and what its JSON Schema is."""

    read: Callable[[Any], Any]
    schema: Json
    write: Callable[[Any], Any] | None = None

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        written = core_schema.plain_serializer_function_ser_schema(self.write) if self.write else None
        return core_schema.no_info_plain_validator_function(self.read, serialization=written)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> Json:
        return dict(self.schema)


def refused(sentence: str) -> PydanticCustomError:
    """The error that a reader raises; pydantic adds the path."""
    return PydanticCustomError("refused", "{sentence}", {"sentence": sentence})


def shown(value: Any) -> str:
    """A value as an error message quotes it: shortened, and `nothing` for an empty one."""
    if isinstance(value, str):
        return f"'{value}'" if value.isprintable() and len(value) <= 80 else _SHORT.repr(value)
    return "nothing" if value is None else _SHORT.repr(value)


def one_of(words: Iterable[str]) -> Reads:
    """Reads one of a few words."""
    valid = tuple(words)

    def read(value: Any) -> str:
        if isinstance(value, str) and value in valid:
            return value
        hint = did_you_mean(value, valid) if isinstance(value, str) else ""
        raise refused(f"{shown(value)} is not one of {', '.join(valid)}.{hint}")

    return Reads(read, {"enum": list(valid)})


def is_number(value: Any) -> bool:
    """Whether it is a number in YAML's sense, in which True is not one."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def finite(value: int | float) -> float:
    """The number as a float; inf where it is too large for one."""
    try:
        return float(value)
    except OverflowError:
        return math.inf


def read_positive(value: Any) -> float:
    """Reads a number above zero."""
    if is_number(value) and 0 < finite(value) < math.inf:
        return finite(value)
    raise refused(f"{shown(value)} is not a positive finite number.{_why_no_number(value)}")


def read_share(value: Any) -> float:
    """Reads a number between zero and one, neither included."""
    if is_number(value) and 0 < value < 1:
        return float(value)
    raise refused(f"{shown(value)} is not a number between 0 and 1, neither included.{_why_no_number(value)}")


def read_version(value: Any) -> int:
    """Reads the grammar's version, of which there is one."""
    if is_number(value) and value == 1:
        return 1
    raise refused(f"{shown(value)} is not a version of the grammar; write 1, or leave it out.")


def read_text(value: Any) -> str:
    """Reads a rule's name."""
    if isinstance(value, str) and value.strip():
        return value
    raise refused(f"{shown(value)} is not text.{_quote(value)}")


def read_selector(value: Any) -> str:
    """Reads one target or ignore, as far as it can be checked without a model."""
    if not isinstance(value, str):
        raise refused(f"{shown(value)} is not text, which a selector is.{_quote(value)}")
    try:
        check_syntax(value)
    except SelectorError as error:
        raise refused(f"{shown(value)} {error}.") from None
    return value


def read_mean(value: Any) -> float | str:
    """Reads a prior's mean."""
    if isinstance(value, str) and value in MEANS:
        return value
    if is_number(value) and math.isfinite(finite(value)):
        return finite(value)
    hint = did_you_mean(value, MEANS) if isinstance(value, str) else ""
    what = "is not one of zero, pretrained, auto or a finite number."
    raise refused(f"{shown(value)} {what}{hint}{_why_no_number(value)}")


def scale(kinds: dict[str, str], words: tuple[str, ...] = ()) -> Reads:
    """Reads a std: a number, a mapping `{kind: number}` of one of the kinds, or one of the words."""
    *forms, last = ["a positive finite number", *(f"{{{kind}: number}}" for kind in kinds), *words]

    def read(value: Any) -> Scale | str:
        if isinstance(value, Scale) and value.kind in ("constant", *kinds):
            return value
        if isinstance(value, str) and value in words:
            return value
        if isinstance(value, dict) and len(value) == 1 and next(iter(value)) in kinds:
            ((kind, number),) = value.items()
            return Scale(kind, read_positive(number))
        if is_number(value):
            return Scale("constant", read_positive(value))
        raise refused(f"{shown(value)} is not {', '.join(forms)} or {last}.{_scale_hint(value, tuple(kinds), words)}")

    return Reads(read, _scale_schema(kinds, words), plain_scale)


def plain_scale(value: Any) -> Any:
    """A std as the grammar writes it: the inverse of reading."""
    if not isinstance(value, Scale):
        return value
    return value.value if value.kind == "constant" else {value.kind: value.value}


def _scale_hint(value: Any, kinds: tuple[str, ...], words: tuple[str, ...]) -> str:
    if isinstance(value, dict):
        return "".join(did_you_mean(key, kinds) for key in list(value)[:1] if key not in kinds)
    return (did_you_mean(value, words) or _why_no_number(value)) if isinstance(value, str) else ""


def _scale_schema(kinds: dict[str, str], words: tuple[str, ...]) -> Json:
    number = {"type": "number", "exclusiveMinimum": 0, "maximum": sys.float_info.max}
    mappings = [
        {
            "type": "object",
            "properties": {kind: {**number, "description": meaning}},
            "required": [kind],
            "additionalProperties": False,
        }
        for kind, meaning in kinds.items()
    ]
    return {"anyOf": [{**number, "description": "The std itself."}, *mappings, *({"const": word} for word in words)]}


def _why_no_number(value: Any) -> str:
    """A hint, if the text would be a number without its quotes, or with a dot instead of its comma."""
    if not isinstance(value, str):
        return ""
    try:
        number = float(value.replace(",", "."))
    except ValueError:
        return ""
    return f" Write {number:g}, without quotes." if math.isfinite(number) else ""


def _quote(value: Any) -> str:
    return f" Put it in quotes: '{value}'." if is_number(value) or isinstance(value, bool) else ""


RELATIVE = {"relative": "This many times |w|, the size of each weight."}
FAN_IN = {"fan_in": "This number divided by the square root of the layer's fan-in."}
INIT_STD = {"init_std": "This many times the posterior's initial std."}

_FINITE = {"type": "number", "minimum": -sys.float_info.max, "maximum": sys.float_info.max}

# A regular expression that starts with a repetition or ends in a backslash; a text that only a regular expression
# could be; a bracket that is never closed.
_NO_SELECTOR = r"^re:([*+?]|(.*[^\\])?\\$)", r"^(?!re:|type:).*(\\|\$$|[()|]|\.\+|\]\+|\{\d|\.\.\*)", (
    r"^(?!re:|type:)(\^|\.\*|.*\[[^\]]*$)"
)
_SELECTOR_SCHEMA = {
    "type": "string", "minLength": 1, "maxLength": LONGEST,
    "not": {"anyOf": [{"pattern": pattern} for pattern in _NO_SELECTOR]},
}  # fmt: skip

METHOD = one_of(METHODS)
FAMILY = one_of(FAMILIES)
PARAMETERIZATION = one_of(("additive", "multiplicative"))
BASIS = one_of(("weights", "inputs"))
NOISE_DTYPE = one_of(("weights", "bfloat16"))
BIAS = one_of(("deterministic", "variational"))
SIGNS = one_of(("example", "position"))
FROZEN = one_of(("keep", "convert"))
UNMATCHED = one_of(("error", "allow"))
INITIAL_STD = scale({**RELATIVE, **FAN_IN}, ("auto",))
PRIOR_STD = scale({**RELATIVE, **FAN_IN, **INIT_STD})
MEAN = Reads(read_mean, {"anyOf": [{"enum": list(MEANS)}, _FINITE]})
POSITIVE = Reads(read_positive, {"type": "number", "exclusiveMinimum": 0, "maximum": sys.float_info.max})
SHARE = Reads(read_share, {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1})
TEXT = Reads(read_text, {"type": "string", "minLength": 1})
SELECTOR = Reads(read_selector, _SELECTOR_SCHEMA)
VERSION = Reads(read_version, {"const": 1})
