"""What a policy may ask for: patterns that match quickly whatever the names are, and thousands of rules."""

import re
import time

import pytest
from torch import nn

from bayesify.errors import PolicyError
from bayesify.policy.policy import Policy
from bayesify.policy.rule_matching import claim
from bayesify.policy.selectors import LONGEST, Candidate, compiled
from bayesify.regex_limits import why_slow

SLOW = [
    "(a+)+$", "(a|a)*b", "(a|aa)+$", "(.*)*x", r"(?:\w*)*x", ".*.*.*.*.*x", r"\w*\w*\w*\w*\w*x", "((a*)b?)*c",
    "(?:a?){50}a{50}", "(?:(?:a{0,50}){0,50}){0,50}b", r"(?:[^.]*\.?)*x", r"(?:.+\.)*x", "a?" * 30 + "a" * 30,
]  # fmt: skip
QUICK = [
    r"layer[34]\.\d+\.conv\d", r"(?:[^.]+\.)*conv\d", r"(?:\w+\.)*fc", r".*\.(q|k|v)_proj", ".*attn.*proj.*", "(a)\\1*",
    r"encoder\.layers\.\d+\.(attn|mlp)\.\w+\.\w+\.\w+\.\w+\.\w+", "(?i)LAYER[0-9]{1,3}", r"a\.(?!0).*", "a.*(?=b)",
]  # fmt: skip


@pytest.mark.parametrize("pattern", SLOW)
def test_a_pattern_that_can_take_forever_is_refused_with_a_reason(pattern: str) -> None:
    with pytest.raises(PolicyError, match=r"rule 1 'heads': targets: .*(forever|optional)"):
        Policy.from_dict({"rules": [{"name": "heads", "targets": [f"re:{pattern}"]}]})


@pytest.mark.parametrize("pattern", QUICK)
def test_usual_patterns_are_not(pattern: str) -> None:
    assert why_slow(pattern) is None


@pytest.mark.parametrize("text", ["re:.*a.*a.*a.*b", "*a*a*a*a*b", "**a**ab", "**.*a*a.**.a*a*.**.b"])
def test_what_is_allowed_is_quick_on_the_worst_names(text: str) -> None:
    selector, start = compiled(text), time.process_time()
    for name in ("a" * 60, ".".join(["aaaa"] * 15)):
        selector.covers(name)
    assert time.process_time() - start < 5


@pytest.mark.parametrize("text", ["*a*a*a*a*a*b", "**a**a**b", "**.a." * 9 + "b"])
def test_globs_of_many_wildcards_are_refused(text: str) -> None:
    with pytest.raises(PolicyError, match=r"too many wildcards; 5 '\*'"):
        Policy.from_dict({"ignore": [text]})


def test_a_selector_is_no_novel() -> None:
    assert Policy.from_dict({"ignore": ["a" * LONGEST]})
    with pytest.raises(PolicyError, match="has 1,001 characters; a selector has 1,000 at most"):
        Policy.from_dict({"ignore": ["a" * (LONGEST + 1)]})


def test_thousands_of_rules_match_quickly() -> None:
    """The time of 4,000 rules is not that of 4,000 × 4,000 matches: 4 times as many take about 4 times as long."""
    assert seconds(4000) < 9 * seconds(1000) + 0.5


def seconds(count: int) -> float:
    rules = [{"name": f"r{index}", "targets": [f"layers.{index}"], "ignore": ["head"]} for index in range(count)]
    policy = Policy.from_dict({"rules": rules})
    names = [f"layers.{index}" for index in range(count)]
    candidates = [Candidate((name,), nn.Linear, True) for name in [*names, "head"]]
    start = time.process_time()
    claims = claim(policy, candidates, ["", "layers", "head", *names])
    assert [found.rule for found in claims[:-1]] == [f"r{index}" for index in range(count)]
    return time.process_time() - start


def test_a_rule_is_named_in_messages_and_what_does_not_print_is_escaped() -> None:
    for name, shown in (("heads", "'heads'"), ("a\x1b[2J", r"'a\x1b[2J'")):
        with pytest.raises(PolicyError) as refusal:
            Policy.from_dict({"rules": [{"targets": ["fc"]}, {"name": name, "targets": ["fc"], "prior": {"std": -1}}]})
        assert str(refusal.value) == f"rule 2 {shown}: prior.std: -1 is not a positive finite number."
    assert not re.search("'", str(Policy.from_dict({"rules": [{"targets": ["fc"]}]}).origin.rules))
