"""The strings in an exported program that torch would evaluate: operators, symbolic sizes, structures of inputs."""

from __future__ import annotations

import ast
import json
import re
from typing import Any

from ...errors import FileRefusedError
from .operator_names import ATEN, PRIMS, TORCHVISION

_OPERATOR = re.compile(r"torch\.ops\.(aten|prims|torchvision)\.(\w+)\.\w+", re.ASCII)
_NAMES = {"aten": ATEN, "prims": PRIMS, "torchvision": TORCHVISION}
_SYMBOLIC = re.compile(r"torch\._?sym_\w+", re.ASCII)
_PYTHON = re.compile(
    r"_operator\.(getitem|add|sub|mul|truediv|floordiv|mod|neg|pow|pos|abs|l[te]|g[te]|eq|ne|and_|or_|not_)"
)
_MATH = re.compile(r"math\.(ceil|floor|trunc|sqrt|log2?|exp|pow|sin|cos|tan|asin|acos|atan|sinh|cosh|tanh)")
_HIGHER = re.compile(r"torch\.ops\.higher_order\.(wrap_with_set_grad_enabled|wrap_with_autocast|cond)")
# One token of a symbolic size: a symbol or number in quotes, a word, a number, a sign.
_TOKEN = re.compile(
    r"\s*(?:'(?P<symbol>[a-z]{1,3}\d+|[-+]?[\d.]{1,25}(?:e[-+]?\d{1,3})?)'|(?P<word>[A-Za-z]\w*)"
    r"|\d{1,25}(?:\.\d{1,25})?(?:e[-+]?\d{1,3})?(?!\w)|[-+*/%(),=<>&|~!])"
)
_WORDS = {
    "Symbol", "Integer", "Rational", "Float", "Add", "Mul", "Pow", "Mod", "Max", "Min", "Abs", "floor", "ceiling",
    "true", "false", "And", "Or", "Not", "Xor", "Eq", "Ne", "Lt", "Le", "Gt", "Ge", "Equality", "Unequality",
    "StrictLessThan", "StrictGreaterThan", "LessThan", "GreaterThan", "Piecewise", "ExprCondPair", "oo", "FloorDiv",
    "ModularIndexing", "Where", "PythonMod", "CleanDiv", "CeilToInt", "FloorToInt", "CeilDiv", "LShift", "RShift",
    "PowByNatural", "FloatPow", "FloatTrueDiv", "IntTrueDiv", "IsNonOverlappingAndDenseIndicator", "TruncToFloat",
    "TruncToInt", "RoundToInt", "RoundDecimal", "ToFloat", "Identity", "True", "False", "positive", "nonnegative",
    "integer", "real", "negative", "zero", "finite", "precision", "evaluate", "BooleanTrue", "BooleanFalse", "One",
    "Zero", "NegativeOne", "Half", "Infinity",
}  # fmt: skip
_LONGEST = 2_000
_MOST_CALLS = 80  # of functions in one size
_POWERS = {"Pow", "PowByNatural", "FloatPow", "LShift"}
_NUMBERS = {"Integer", "Rational", "Float"}
_HIGHEST = 8  # exponent, so that no number has more digits than can be computed
_DEEPEST = 3  # powers within powers

_CONTAINERS = ("builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict")


def refuse_operator(target: str) -> None:
    """Refuse any operation that is not one of torch's that are listed, or of Python's on numbers.

    Raises:
        FileRefusedError: another one.
    """
    match = _OPERATOR.fullmatch(target)
    if match and match[2] in _NAMES[match[1]]:
        return
    if any(form.fullmatch(target) for form in (_SYMBOLIC, _PYTHON, _MATH, _HIGHER)):
        return
    raise FileRefusedError(f"its program calls {target[:80]!r}, not an operator that programs may call; refused")


def refuse_expression(text: str) -> None:
    """Refuse a symbolic size that is not arithmetic on symbols: torch evaluates it as Python.

    Raises:
        FileRefusedError: it is something else.
    """
    at = 0
    while at < len(text.rstrip()) <= _LONGEST:
        token = _TOKEN.match(text, at)
        word = token and token["word"]
        if token is None or (word and word not in _WORDS and not re.fullmatch(r"[a-z]{1,3}\d+", word)):
            break
        at = token.end()
    else:
        if at and len(text) <= _LONGEST and text.count("(") <= _MOST_CALLS and _is_small(text):
            return
    raise FileRefusedError(f"its program has the size {text[:80]!r}, which is not arithmetic of symbols; refused")


def _is_small(text: str) -> bool:
    try:
        return _powers(ast.parse(text.strip(), mode="eval").body) <= _DEEPEST
    except (SyntaxError, ValueError, TypeError, IndexError, RecursionError, MemoryError):
        return False


def _powers(node: ast.AST) -> int:
    """How deep powers stand within powers.

    Raises:
        ValueError: an exponent is not a small number.
    """
    depth = max(map(_powers, ast.iter_child_nodes(node)), default=0)
    sign = isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow | ast.LShift)
    if not sign and not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _POWERS):
        return depth
    exponent = node.right if isinstance(node, ast.BinOp) else node.args[-1]  # type: ignore[attr-defined]
    if _largest(exponent) > _HIGHEST:
        raise ValueError("an exponent that is not a small number")
    return depth + 1


def _largest(number: ast.AST) -> float:
    """The largest part of a number as sympy writes it."""
    if isinstance(number, ast.UnaryOp):
        return _largest(number.operand)
    if isinstance(number, ast.Call) and isinstance(number.func, ast.Name) and number.func.id in _NUMBERS:
        return max(map(_largest, number.args))
    if isinstance(number, ast.Constant):
        return abs(float(number.value))  # type: ignore[arg-type]
    raise ValueError("an exponent that is not a number")


def plain_structure(text: str) -> str:
    """A structure of inputs or outputs as tuples, lists and dicts: objects of other classes become dicts or tuples.

    Raises:
        ValueError, TypeError, KeyError: it is not a structure that torch writes.
    """
    version, spec = json.loads(text)
    return json.dumps([int(version), _plain(spec)])


def _plain(spec: dict[str, Any]) -> dict[str, Any]:
    children = [_plain(child) for child in spec["children_spec"]]
    kind, context = spec["type"], spec["context"]
    if kind is None:
        return {"type": None, "context": None, "children_spec": []}
    keys = _keys(json.loads(context), len(children)) if isinstance(context, str) and kind != "builtins.tuple" else None
    if kind not in _CONTAINERS:
        kind = "builtins.dict" if keys is not None else "builtins.tuple"
    if keys is not None and kind in ("builtins.dict", "collections.OrderedDict"):
        return {"type": kind, "context": json.dumps(keys), "children_spec": children}
    if kind in ("builtins.dict", "collections.OrderedDict"):
        raise ValueError("a dict with keys that are not plain values")
    return {"type": kind, "context": "null", "children_spec": children}


def _keys(context: Any, size: int) -> list[Any] | None:
    """The keys of a dict, or of an object whose fields torch lists like one: transformers' outputs, [fields, ...]."""
    if isinstance(context, list) and len(context) != size and context and isinstance(context[0], list):
        context = context[0]
    plain = isinstance(context, list) and len(context) == size
    return context if plain and all(type(key) in (str, int, float, bool) for key in context) else None
