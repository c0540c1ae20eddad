"""What is wrong with a policy: said once, in a sentence that says what to write; and what an editor sees of it."""

from __future__ import annotations

import contextlib
import math
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bayesify.errors import PolicyError
from bayesify.policy.policy import Policy

from .test_policy import ISSUE, problems, read

BROKEN: list[tuple[dict[str, Any], str]] = [
    ({"metod": "lrt"}, "unknown key 'metod'. Did you mean 'method'?"),
    ({"init_std": 1}, "unknown key 'init_std'. It belongs in posterior: {init_std: ...}."),
    ({"targets": ["fc"]}, "unknown key 'targets'. It belongs in a rule: rules: [{targets: [...]}]."),
    ({"version": 2}, "version: 2 is not a version of the grammar; write 1, or leave it out."),
    ({"version": True}, "version: True is not a version of the grammar; write 1, or leave it out."),
    ({"method": "flipuot"}, "method: 'flipuot' is not one of flipout, lrt, keep. Did you mean 'flipout'?"),
    ({"method": None}, "method: nothing is not one of flipout, lrt, keep."),
    ({"bias": "off"}, "bias: 'off' is not one of deterministic, variational."),
    ({"frozen": False}, "frozen: False is not one of keep, convert."),
    ({"unmatched": "alow"}, "unmatched: 'alow' is not one of error, allow. Did you mean 'allow'?"),
    ({"posterior": "additive"}, "posterior: 'additive' is not a mapping of keys to values."),
    ({"prior": {"sdt": 1}}, "unknown key 'prior.sdt'. Did you mean 'std'?"),
    ({"posterior": {"init_std": 0}}, "posterior.init_std: 0 is not a positive finite number."),
    ({"posterior": {"init_std": math.inf}}, "posterior.init_std: inf is not a positive finite number."),
    ({"posterior": {"init_std": 10**400}}, "is not a positive finite number."),
    (
        {"posterior": {"init_std": True}},
        "True is not a positive finite number, {relative: number}, {fan_in: number} or auto.",
    ),
    ({"posterior": {"init_std": "atuo"}}, "Did you mean 'auto'?"),
    ({"posterior": {"init_std": "0,01"}}, "Write 0.01, without quotes."),
    ({"posterior": {"init_std": {"relativ": 1}}}, "Did you mean 'relative'?"),
    ({"posterior": {"init_std": {"relative": -1}}}, "posterior.init_std: -1 is not a positive finite number."),
    ({"posterior": {"init_std": {"relative": 1, "fan_in": 1}}}, "is not a positive finite number, {relative: number}"),
    ({"posterior": {"init_std": {"init_std": 1}}}, "is not a positive finite number, {relative: number}"),
    ({"prior": {"std": "auto"}}, "prior.std: 'auto' is not a positive finite number, {relative: number}"),
    ({"prior": {"mean": math.nan}}, "prior.mean: nan is not one of zero, pretrained, auto or a finite number."),
    ({"prior": {"mean": "pre-trained"}}, "Did you mean 'pretrained'?"),
    ({"prior": {"mean": False}}, "prior.mean: False is not one of zero, pretrained, auto or a finite number."),
    ({"prior": {"family": "scale_mixture", "pi": 1}}, "prior.pi: 1 is not a number between 0 and 1, neither included."),
    ({"prior": {"family": "scale_mixture", "pi": True}}, "prior.pi: True is not a number between 0 and 1"),
    ({"prior": {"family": "scale_mixture", "std1": {"relative": 1}}}, "prior.std1: {'relative': 1} is not a positive"),
    (
        {"prior": {"family": "scale_mixture", "mean": 0}},
        "prior.mean belongs to the family normal; this prior's family is scale_m",
    ),
    ({"prior": {"pi": 0.5}}, "prior.pi belongs to the family scale_mixture; this prior's family is normal."),
    (
        {"prior": {"family": "log_uniform"}},
        "the log_uniform prior needs posterior: {parameterization: multiplicative}.",
    ),
    ({"ignore": "conv1"}, "ignore: 'conv1' is not a list. Write [conv1]."),
    ({"ignore": [1.5]}, "ignore: 1.5 is not text, which a selector is. Put it in quotes: '1.5'."),
    ({"rules": {"targets": ["fc"]}}, "rules: {'targets': ['fc']} is not a list."),
    ({"rules": ["fc"]}, "rule 1: 'fc' is not a mapping of keys to values."),
    ({"rules": [{"name": "x"}]}, "rule 1 'x': 'targets' is missing: the selectors of the layers that the rule is for."),
    (
        {"rules": [{"targets": []}]},
        "rule 1: targets: an empty list selects nothing; name a layer, or leave the rule out.",
    ),
    ({"rules": [{"targets": ["fc"]}, {"target": ["fc"]}]}, "rule 2: unknown key 'target'. Did you mean 'targets'?"),
    ({"rules": [{"targets": ["fc"], "name": 3}]}, "rule 1: name: 3 is not text. Put it in quotes: '3'."),
    (
        {"rules": [{"targets": [r"layer1\..*"]}]},
        r"'layer1\..*' looks like a regular expression; write 're:layer1\..*'.",
    ),
    ({"rules": [{"targets": ["re:("]}]}, "rule 1: targets: 're:(' is not a regular expression"),
    ({"rules": [{"targets": ["x"], "ignore": ["a[b"]}]}, "rule 1: ignore: 'a[b' has a '[' that is never closed."),
    ({"rules": [{"targets": ["x"], "prior": {"pi": 0.5}}]}, "rule 1: prior.pi belongs to the family scale_mixture"),
    (
        {"prior": {"family": "scale_mixture"}, "rules": [{"targets": ["x"], "prior": {"std": 1.0}}]},
        "rule 1: prior.std belongs to the family normal; this prior's family is scale_mixture.",
    ),
    (
        {"rules": [{"targets": ["x"], "prior": {"family": "log_uniform"}}]},
        "rule 1: the log_uniform prior needs posterior: {parameterization: multiplicative}.",
    ),
]


@pytest.mark.parametrize(("data", "says"), BROKEN, ids=[says[:40] for _, says in BROKEN])
def test_a_broken_policy_says_what_is_wrong_once(data, says) -> None:
    (problem,) = problems(data)
    assert says in problem
    assert "\n" not in problem


def test_all_problems_come_at_once() -> None:
    merged: dict[str, Any] = {"rules": []}
    kinds = ({"method": "x"}, {"bias": "x"}, {"prior": {"pi": 0.5}}, {"version": 3}, {"sings": "example"})
    for data in kinds:
        merged |= data
    merged["rules"] = [{"targets": ["fc"], "signs": "x", "posterior": {"init_std": -1}}, {"targets": "fc"}]
    assert len(problems(merged)) == 8


JUNK = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.sampled_from(["auto", "lrt"])
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(
                ["method", "prior", "posterior", "rules", "std", "family", "targets", "relative", "init_std", "x"]
            ),
            inner,
            max_size=4,
        ),
    ),
    max_leaves=12,
)


@settings(max_examples=400, deadline=None, derandomize=True)
@given(
    st.dictionaries(st.sampled_from(["method", "prior", "posterior", "rules", "ignore", "version"]), JUNK, max_size=4)
)
def test_junk_is_read_or_refused_in_sentences(data) -> None:
    try:
        policy = Policy.from_dict(data)
    except PolicyError as error:
        assert not [problem for problem in error.problems if "Input should" in problem]  # noqa: PT017
    else:
        assert Policy.from_dict(policy.to_dict()).to_dict() == policy.to_dict()


def valid(data: Any, schema: dict[str, Any], root: dict[str, Any]) -> bool:
    """The part of JSON Schema that the policy's uses."""
    if "$ref" in schema and not valid(data, root["$defs"][schema["$ref"].rpartition("/")[2]], root):
        return False
    kinds = {"object": dict, "array": list, "string": str, "number": int | float, "integer": int}
    if "type" in schema and (not isinstance(data, kinds[schema["type"]]) or isinstance(data, bool)):
        return False
    if data not in schema.get("enum", [data]) or data != schema.get("const", data):
        return False
    return combined(data, schema, root) and inside(data, schema, root)


def combined(data: Any, schema: dict[str, Any], root: dict[str, Any]) -> bool:
    if "anyOf" in schema and not any(valid(data, choice, root) for choice in schema["anyOf"]):
        return False
    if not all(valid(data, condition, root) for condition in schema.get("allOf", ())):
        return False
    if "not" in schema and valid(data, schema["not"], root):
        return False
    return "if" not in schema or not valid(data, schema["if"], root) or valid(data, schema["then"], root)


def inside(data: Any, schema: dict[str, Any], root: dict[str, Any]) -> bool:
    if isinstance(data, dict):
        known = schema.get("properties", {})
        strangers = data.keys() - known.keys() if schema.get("additionalProperties") is False else ()
        missing = set(schema.get("required", ())) - data.keys()
        members = all(valid(value, known[key], root) for key, value in data.items() if key in known)
        return not strangers and not missing and members
    if isinstance(data, list):
        items = schema.get("items", {})
        return len(data) >= schema.get("minItems", 0) and all(valid(item, items, root) for item in data)
    if isinstance(data, str):
        long_enough = schema.get("minLength", 0) <= len(data) <= schema.get("maxLength", math.inf)
        return long_enough and re.search(schema.get("pattern", ""), data) is not None
    low, high = schema.get("exclusiveMinimum", -math.inf), schema.get("exclusiveMaximum", math.inf)
    least, most = schema.get("minimum", -math.inf), schema.get("maximum", math.inf)
    return not isinstance(data, int | float) or (low < data < high and least <= data <= most)


def test_the_json_schema_accepts_policies_and_describes_every_key(tmp_path) -> None:
    schema = Policy.json_schema()
    for policy in (Policy(), read(ISSUE, tmp_path), *map(Policy.parse, ("moped", "sparse", "scratch", "last-layer"))):
        assert valid(policy.to_dict(), schema, schema)
    models = [schema, *schema["$defs"].values()]
    assert all(field.get("description") for model in models for field in model["properties"].values())
    assert "null" not in str(schema)
    assert schema["properties"]["method"]["enum"] == ["flipout", "lrt", "keep"]
    assert schema["properties"]["prior"]["default"] == {"family": "normal", "mean": "auto"}


# What a schema cannot say: whether a regular expression is one, and that nan is no number.
BEYOND_A_SCHEMA = "is not a regular expression", "nan"


@pytest.mark.parametrize(
    "data",
    [data for data, says in BROKEN if not any(part in says for part in BEYOND_A_SCHEMA) and "version" not in data],
)
def test_the_json_schema_refuses_what_the_reader_refuses(data) -> None:
    schema = Policy.json_schema()
    assert not valid(data, schema, schema)


SCHEMA = Policy.json_schema()
FAMILIES = st.sampled_from(["normal", "scale_mixture", "log_uniform"])
PARAMETERIZATIONS = st.sampled_from(["additive", "multiplicative"])
PRIORS = st.fixed_dictionaries({}, optional={"family": FAMILIES, "std": st.just(1.0), "std1": st.just(1.0)})
SETTINGS = {
    "prior": PRIORS,
    "posterior": st.fixed_dictionaries({}, optional={"parameterization": PARAMETERIZATIONS}),
    "method": st.sampled_from(["flipout", "keep"]),
}
RULES = st.lists(st.fixed_dictionaries({"targets": st.just(["fc"])}, optional=SETTINGS), max_size=2)


@settings(max_examples=400, deadline=None, derandomize=True)
@given(st.fixed_dictionaries({}, optional={**SETTINGS, "rules": RULES}))
def test_settings_that_do_not_go_together_are_refused_by_both(data) -> None:
    try:
        Policy.from_dict(data)
    except PolicyError:
        assert not valid(data, SCHEMA, SCHEMA)
    else:
        assert valid(data, SCHEMA, SCHEMA)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.text("a.*[]!^$()|+\\{1?:re", max_size=8))
def test_the_schema_refuses_no_selector_that_is_read(text) -> None:
    schema = SCHEMA["properties"]["ignore"]
    with contextlib.suppress(PolicyError):
        Policy.from_dict({"ignore": [text]})
        assert valid([text], schema, schema)


def test_a_class_of_no_characters_is_refused() -> None:
    for text in ("a[]", "a[!]"):
        with pytest.raises(PolicyError, match="matches no character"):
            Policy.from_dict({"ignore": [text]})
