"""What is wrong with a policy, in sentences that say where.

rule 2 'head' (line 9): unknown key 'target'. Did you mean 'targets'?
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ValidationError

from ..errors import PolicyError, did_you_mean
from .values import shown

Path = tuple[str | int, ...]

FAMILY_KEYS: dict[str, tuple[str, ...]] = {
    "normal": ("mean", "std"),
    "scale_mixture": ("pi", "std1", "std2"),
    "log_uniform": (),
}

_MISSING = "'targets' is missing: the selectors of the layers that the rule is for."


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong, at a path into the policy such as `("rules", 1, "targets", 0)`."""

    path: Path
    sentence: str
    line: int | None = None


@dataclass(frozen=True)
class Origin:
    """Where a policy came from. Policies of different origins are equal if they say the same.

    Attributes:
        source: the policy's file, preset or method name.
        lines: the line of each key and item.
        rules: the names of the rules that have one.
    """

    source: str | None = field(default=None, compare=False)
    lines: Mapping[Path, int] = field(default_factory=dict, compare=False, repr=False)
    rules: Mapping[int, str] = field(default_factory=dict, compare=False, repr=False)

    def line(self, problem: Problem) -> int | None:
        """The line of the innermost part of the problem's path that stands in the file."""
        parents = (problem.path[:cut] for cut in range(len(problem.path), 0, -1))
        return problem.line or next((self.lines[path] for path in parents if path in self.lines), None)

    def located(self, problem: Problem) -> str:
        """The problem with its rule and its line in front."""
        line, rule = self.line(problem), self._rule(problem.path)
        where = f"{rule} (line {line})" if rule and line else rule or (f"line {line}" if line else "")
        return f"{where}: {problem.sentence}" if where else problem.sentence

    def _rule(self, path: Path) -> str:
        if len(path) < 2 or path[0] != "rules" or not isinstance(path[1], int):
            return ""
        name = self.rules.get(path[1])
        return f"rule {path[1] + 1} {shown(name)}" if name else f"rule {path[1] + 1}"

    def refuse(self, problems: Iterable[Problem]) -> None:
        """Raises `PolicyError` with all problems, in the order of their lines, if there is any."""
        ordered = sorted(problems, key=lambda problem: self.line(problem) or 0)
        if ordered:
            raise PolicyError(list(dict.fromkeys(map(self.located, ordered))), self.source)


def schema_problems(error: ValidationError, model_at: Callable[[Path], type[BaseModel]]) -> list[Problem]:
    """pydantic's errors in our own sentences. `model_at` gives the model that reads the mapping at a path."""
    problems = [_problem(details["loc"], details["type"], details, model_at) for details in error.errors()]
    misspelt = {problem.path[:-1] for problem in problems if "Did you mean 'targets'" in problem.sentence}
    return [problem for problem in problems if not (problem.sentence == _MISSING and problem.path[:-1] in misspelt)]


def _problem(path: Path, kind: str, details: Mapping[str, Any], model_at: Callable[[Path], type[BaseModel]]) -> Problem:
    if kind == "extra_forbidden":
        return Problem(path, f"unknown key {key_name(path)!r}.{_key_hint(path, model_at)}")
    if kind == "missing":
        return Problem(path, _MISSING)
    said = {
        "refused": details["msg"],
        "tuple_type": f"{shown(details['input'])} is not a list.{_list_hint(details['input'])}",
        "model_type": f"{shown(details['input'])} is not a mapping of keys to values.",
    }.get(kind, details["msg"])
    name = key_name(path)
    return Problem(path, f"{name}: {said}" if name else said)


def key_name(path: Path) -> str:
    """A key as a message names it, within its rule: `prior.std`, `targets`."""
    inside = path[2:] if path[:1] == ("rules",) and len(path) > 1 else path
    return ".".join(str(part) for part in inside if isinstance(part, str))


def _key_hint(path: Path, model_at: Callable[[Path], type[BaseModel]]) -> str:
    key, valid = str(path[-1]), model_at(path[:-1]).model_fields
    for section in ("posterior", "prior"):
        if section in valid and key in model_at((*path[:-1], section)).model_fields:
            return f" It belongs in {section}: {{{key}: ...}}."
    if key == "targets":
        return " It belongs in a rule: rules: [{targets: [...]}]."
    return did_you_mean(key, valid) or f" Known keys: {', '.join(valid)}."


def _list_hint(value: Any) -> str:
    return f" Write [{value}]." if isinstance(value, str) and value.isidentifier() else ""


def combination_problems(data: Any) -> list[Problem]:
    """Settings that are valid by themselves and do not go together, in plain data.

    For a rule, the settings that count are those after merging over the defaults.
    """
    defaults = data if isinstance(data, dict) else {}
    rules = defaults.get("rules")
    if not isinstance(rules, list) or not rules:
        return [*_foreign_keys((), defaults, {}), *_log_uniform((), defaults, {})]
    problems = _foreign_keys((), defaults, {})
    for index, rule in enumerate(rules):
        if isinstance(rule, dict):
            problems += _foreign_keys(("rules", index), rule, defaults)
            problems += _log_uniform(("rules", index), rule, defaults)
    return problems


def _foreign_keys(path: Path, settings: Mapping[str, Any], defaults: Mapping[str, Any]) -> list[Problem]:
    family = _setting("prior", "family", "normal", settings, defaults)
    owners = {key: owner for owner, keys in FAMILY_KEYS.items() for key in keys}
    known = FAMILY_KEYS.get(family, tuple(owners))
    strangers = [key for key in _section(settings, "prior") if key in owners and key not in known]
    sentence = "prior.{} belongs to the family {}; this prior's family is {}."
    return [Problem((*path, "prior", key), sentence.format(key, owners[key], family)) for key in strangers]


def _log_uniform(path: Path, settings: Mapping[str, Any], defaults: Mapping[str, Any]) -> list[Problem]:
    family = _setting("prior", "family", "normal", settings, defaults)
    parameterization = _setting("posterior", "parameterization", "additive", settings, defaults)
    if family != "log_uniform" or parameterization != "additive" or settings.get("method") == "keep":
        return []
    places: tuple[Path, ...] = (("prior", "family"), ("posterior", "parameterization"))
    own = [(*path, section, key) for section, key in places if key in _section(settings, str(section))]
    return [
        Problem(
            own[0] if own else places[0], "the log_uniform prior needs posterior: {parameterization: multiplicative}."
        )
    ]


def _setting(section: str, key: str, builtin: str, *mappings: Mapping[str, Any]) -> str:
    """A setting's word after merging: the first of the mappings that has it decides."""
    values = [_section(mapping, section)[key] for mapping in mappings if key in _section(mapping, section)]
    return values[0] if values and isinstance(values[0], str) else builtin


def _section(settings: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = settings.get(name)
    return section if isinstance(section, dict) else {}
