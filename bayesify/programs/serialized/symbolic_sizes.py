"""Symbolic sizes in an exported program: torch evaluates them as Python, and sympy multiplies them out.

What passes is arithmetic of symbols and numbers that sympy is done with in a moment.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from math import prod
from typing import Any

from ...errors import FileRefusedError

# One token: a symbol or number in quotes, a word, a number, a sign.
_TOKEN = re.compile(
    r"\s*(?:'(?P<symbol>[a-z]{1,3}\d+|[-+]?[\d.]{1,25}(?:e[-+]?\d{1,3})?)'|(?P<word>[A-Za-z]\w*)"
    r"|\d{1,25}(?:\.\d{1,25})?(?:e[-+]?\d{1,3})?(?!\w)|[-+*/%(),=<>&|~!])"
)
_NUMBERS = {"Integer", "Rational", "Float"}
_LEAVES = {"Symbol", *_NUMBERS}
_POWERS = {"Pow", "PowByNatural", "FloatPow", "LShift"}
_ROUNDED = {
    "FloorDiv", "ModularIndexing", "Mod", "PythonMod", "CleanDiv", "CeilDiv", "CeilToInt", "FloorToInt",
    "RShift", "FloatTrueDiv", "IntTrueDiv", "TruncToFloat", "TruncToInt", "RoundToInt", "RoundDecimal",
    "ToFloat", "Identity", "IsNonOverlappingAndDenseIndicator",
}  # fmt: skip
_COMPARED = {
    "floor", "ceiling", "Max", "Min", "Abs", "And", "Or", "Not", "Xor", "Eq", "Ne", "Lt", "Le", "Gt", "Ge", "Equality",
    "Unequality", "StrictLessThan", "StrictGreaterThan", "LessThan", "GreaterThan", "Piecewise", "ExprCondPair",
    "Where",
}  # fmt: skip
_WORDS = _NUMBERS | _POWERS | _ROUNDED | _COMPARED | {
    "Symbol", "Add", "Mul", "true", "false", "oo", "True", "False", "positive", "nonnegative", "integer", "real",
    "negative", "zero", "finite", "precision", "evaluate", "BooleanTrue", "BooleanFalse", "One", "Zero", "NegativeOne",
    "Half", "Infinity",
}  # fmt: skip
_LONGEST = 2_000  # letters
_MOST_CALLS = 80  # of functions, symbols among them
_MOST_COMPARED = 5  # functions and signs whose parts sympy tries with each other
_MOST_TERMS = 500  # when it is multiplied out
_MOST_ROUNDED = 40  # terms of what is divided or rounded
_MOST_LEVELS = 16  # of roundings within roundings
_HIGHEST = 8  # exponent, those within it multiplied: no number has more digits than can be computed
_ALL_COMPARED, _ALL_ROUNDED = 50, 1000  # in all sizes of a program that differ
_DIGITS = 100  # of a float
_COMPARING = (ast.BitOr, ast.BitAnd, ast.BitXor, ast.Invert, ast.cmpop, ast.BoolOp)


def refuse_expression(text: str) -> None:
    """Refuse a symbolic size that is not short arithmetic of symbols.

    Raises:
        FileRefusedError: it is something else.
    """
    short = 0 < len(text) <= _LONGEST and text.count("(") <= _MOST_CALLS
    if not (short and _has_known_words(text) and _is_small(text)):
        raise FileRefusedError(f"its program has the size {text[:80]!r}, which is not arithmetic of symbols; refused")


def refuse_many(texts: Iterable[str]) -> None:
    """Refuse sizes that pass one by one, and together take sympy long.

    Raises:
        FileRefusedError: they do.
    """
    nodes = [node for text in set(texts) for node in ast.walk(ast.parse(text.strip(), mode="eval"))]
    if sum(map(_is_compared, nodes)) > _ALL_COMPARED or sum(_kind(node) == "rounded" for node in nodes) > _ALL_ROUNDED:
        raise FileRefusedError("its program has more sizes to compare and to round than any model; refused")


def _has_known_words(text: str) -> bool:
    at, end = 0, len(text.rstrip())
    while at < end:
        token = _TOKEN.match(text, at)
        word = token and token["word"]
        if token is None or (word and word not in _WORDS and not re.fullmatch(r"[a-z]{1,3}\d+", word)):
            return False
        at = token.end()
    return at > 0


def _is_small(text: str) -> bool:
    try:
        parsed = ast.parse(text.strip(), mode="eval").body
        _terms(parsed)
        _degree(parsed)
        nodes = list(ast.walk(parsed))
        return (
            _levels(parsed) <= _MOST_LEVELS
            and sum(map(_is_compared, nodes)) <= _MOST_COMPARED
            and all(len(_parts(node)) <= 2 * _MOST_COMPARED for node in nodes if _name(node) in _COMPARED)
            and all(_largest(number) <= _DIGITS for node in nodes for number in _digits(node))
        )
    except (SyntaxError, ValueError, TypeError, IndexError, RecursionError, MemoryError):
        return False


def _is_compared(node: ast.AST) -> bool:
    return _name(node) in _COMPARED or isinstance(node, _COMPARING)


def _terms(node: ast.AST, most: int = _MOST_TERMS) -> int:
    """Of how many terms the sum is that it becomes.

    Raises:
        ValueError: of more than `most`, or what is divided and rounded is.
    """
    kind, parts = _kind(node), list(_parts(node))
    if kind == "rounded":
        for part in parts:
            _terms(part, min(most, _MOST_ROUNDED))
        return 1
    inside = [_terms(part, most) for part in parts] or [1]
    if kind == "power":
        inside *= round(max(_largest(_exponent(node)), 1))
    count = sum(inside) if kind == "sum" else prod(inside)
    if count > most:
        raise ValueError("more terms than any size has")
    return count


def _kind(node: ast.AST) -> str:
    if _is_power(node):
        return "power"
    if isinstance(node, ast.BinOp):
        sign = type(node.op)
        return "sum" if sign in (ast.Add, ast.Sub) else "product" if sign in (ast.Mult, ast.Div) else "rounded"
    if isinstance(node, ast.Compare | ast.BoolOp):
        return "rounded"
    name = _name(node)
    return "sum" if name == "Add" else "product" if name in ("Mul", "", *_LEAVES) else "rounded"


def _parts(node: ast.AST) -> list[Any]:
    """What a node computes with: numbers and symbols have no parts."""
    if isinstance(node, ast.Call):
        return [] if _name(node) in _LEAVES else node.args[:1] if _is_power(node) else list(node.args)
    if isinstance(node, ast.BinOp):
        return [node.left] if _is_power(node) else [node.left, node.right]
    if isinstance(node, ast.Compare):
        return [node.left, *node.comparators]
    return [node.operand] if isinstance(node, ast.UnaryOp) else node.values if isinstance(node, ast.BoolOp) else []


def _degree(node: ast.AST) -> float:
    """The highest exponent, those of powers within powers multiplied.

    Raises:
        ValueError: it is not a small number.
    """
    degree = max(map(_degree, ast.iter_child_nodes(node)), default=1.0)
    degree *= max(_largest(_exponent(node)), 1) if _is_power(node) else 1
    if degree > _HIGHEST:
        raise ValueError("an exponent that is not a small number")
    return degree


def _levels(node: ast.AST) -> int:
    depth = max(map(_levels, ast.iter_child_nodes(node)), default=0)
    return depth + (_kind(node) == "rounded")


def _largest(number: ast.AST) -> float:
    """The largest part of a number as sympy writes it."""
    if isinstance(number, ast.UnaryOp):
        return _largest(number.operand)
    if isinstance(number, ast.Call) and _name(number) in _NUMBERS:
        return max(map(_largest, number.args))
    if isinstance(number, ast.Constant):
        return abs(float(number.value))  # type: ignore[arg-type]
    raise ValueError("an exponent that is not a number")


def _digits(node: ast.AST) -> list[ast.AST]:
    """What says how many digits a number has: `Float('1.5', precision=53)`, `RoundDecimal(x, 3)`."""
    if not isinstance(node, ast.Call):
        return []
    keywords: list[ast.AST] = [keyword.value for keyword in node.keywords if keyword.arg == "precision"]
    return keywords + list(node.args[1:] if _name(node) in ("Float", "RoundDecimal") else [])


def _name(node: ast.AST) -> str:
    return node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""


def _is_power(node: ast.AST) -> bool:
    sign = isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow | ast.LShift)
    return sign or _name(node) in _POWERS


def _exponent(node: Any) -> ast.AST:
    return node.right if isinstance(node, ast.BinOp) else node.args[-1]
