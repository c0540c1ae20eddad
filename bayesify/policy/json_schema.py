"""What the JSON Schema of a policy says beyond single values: which settings do not go together.

It refuses what `problems.combination_problems` refuses, in the words of JSON Schema (draft 2020-12).
"""

from __future__ import annotations

from typing import Any

from .problems import FAMILY_KEYS

Json = dict[str, Any]

_KEPT = {"properties": {"method": {"const": "keep"}}, "required": ["method"]}


def without_nulls(schema: Any) -> Any:
    """The schema without `null`: a setting that is not given is left out of a policy, never empty."""
    if isinstance(schema, list):
        return [without_nulls(member) for member in schema]
    if not isinstance(schema, dict):
        return schema
    return {key: without_nulls(value) for key, value in schema.items() if value is not None}


def with_combinations(schema: Json) -> Json:
    """The schema, with what a policy's settings and its rules' settings must agree in."""
    top: list[Json] = [*(_family_keys(family) for family in FAMILY_KEYS), *_log_uniform()]
    rule = {**schema["$defs"]["Rule"], "allOf": [_own_family_keys(family) for family in FAMILY_KEYS]}
    return {**schema, "$defs": {**schema["$defs"], "Rule": rule}, "allOf": top}


def _prior_is(family: str) -> Json:
    given = {"properties": {"family": {"const": family}}, "required": ["family"]}
    return {"properties": {"prior": given}, "required": ["prior"]}


def _posterior_is(parameterization: str) -> Json:
    given = {"properties": {"parameterization": {"const": parameterization}}, "required": ["parameterization"]}
    return {"properties": {"posterior": given}, "required": ["posterior"]}


def _gives(section: str, key: str) -> Json:
    return {"properties": {section: {"required": [key]}}, "required": [section]}


def _foreign(family: str) -> list[Json]:
    """Sections `prior` that have a key of another family."""
    return [_gives("prior", key) for other, keys in FAMILY_KEYS.items() if other != family for key in keys]


def _own_family_keys(family: str) -> Json:
    """A rule that names a family has keys of no other."""
    return {"if": _prior_is(family), "then": {"not": {"anyOf": _foreign(family)}}}


def _family_keys(family: str) -> Json:
    """At the top, and in the rules that inherit the family from there, the prior has keys of no other family."""
    named = _prior_is(family)
    is_family = {"anyOf": [named, {"not": _gives("prior", "family")}]} if family == "normal" else named
    strangers = {"anyOf": _foreign(family)}
    inherit = {"not": {"allOf": [strangers, {"not": _gives("prior", "family")}]}}
    return {"if": is_family, "then": {"not": strangers, "properties": {"rules": {"items": inherit}}}}


def _log_uniform() -> list[Json]:
    """The log-uniform prior needs the multiplicative posterior, both as they are after merging over the defaults."""
    ours, additive = _prior_is("log_uniform"), _posterior_is("additive")
    own_family, own_posterior = _gives("prior", "family"), _gives("posterior", "parameterization")
    is_multiplicative = _posterior_is("multiplicative")
    no_rules = {"not": {"properties": {"rules": {"minItems": 1}}, "required": ["rules"]}}
    alone = {"not": {"allOf": [ours, {"not": is_multiplicative}, {"not": _KEPT}, no_rules]}}
    cases = [
        ({}, [ours, additive]),
        ({"not": is_multiplicative}, [ours, {"not": own_posterior}]),
        (ours, [{"not": own_family}, additive]),
        ({"allOf": [ours, {"not": is_multiplicative}]}, [{"not": own_family}, {"not": own_posterior}]),
    ]
    refused = [({"not": {"allOf": [*rule, {"not": _KEPT}]}}, top) for top, rule in cases]
    return [alone, *({"if": top, "then": {"properties": {"rules": {"items": rule}}}} for rule, top in refused)]
