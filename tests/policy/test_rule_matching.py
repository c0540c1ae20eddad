"""Who owns which layer, and what is said where a policy does not fit the model."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from bayesify.errors import NothingToConvertError, PolicyError
from bayesify.nn.registry import variant
from bayesify.policy.policy import Policy
from bayesify.policy.rule_matching import Claim, claim
from bayesify.policy.selectors import Candidate


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(4, 4, 3)
        self.bn1 = nn.BatchNorm2d(4)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(4, 4, 3)


class Net(nn.Module):
    """Two blocks, a head that goes by two names, an attention whose out_proj is blocked."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.layer1 = nn.Sequential(Block(), Block())
        self.attn = nn.MultiheadAttention(4, 2)
        self.fc = nn.Linear(4, 2)
        self.head = nn.ModuleDict({"out": self.fc})


BLOCKED = {"attn.out_proj": "nn.MultiheadAttention reads its weight without calling it"}


def view(model: nn.Module) -> tuple[list[Candidate], list[str]]:
    """The candidates and names of a model, as a plan sees them."""
    names: dict[int, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(id(module), []).append(name)
    candidates = [
        Candidate(tuple(names[id(module)]), type(module), variant(type(module), "lrt") is not None, BLOCKED.get(name))
        for name, module in model.named_modules()
        if isinstance(getattr(module, "weight", None), nn.Parameter)
    ]
    return candidates, [name for found in names.values() for name in found]


def claims(data: Any, model: nn.Module | None = None) -> dict[str, Claim]:
    candidates, names = view(model or Net())
    decided = claim(Policy.parse(data), candidates, names)
    return {candidate.names[0]: each for candidate, each in zip(candidates, decided, strict=True)}


def owners(data: Any, model: nn.Module | None = None) -> dict[str, str]:
    return {name: claim.rule for name, claim in claims(data, model).items() if claim.method and claim.rule}


def problems(data: Any, model: nn.Module | None = None) -> tuple[str, ...]:
    with pytest.raises(PolicyError) as caught:
        claims(data, model)
    return caught.value.problems


def rules(*each: Any, **top: Any) -> dict[str, Any]:
    return {**top, "rules": [{"targets": rule} if isinstance(rule, list) else rule for rule in each]}


CONVS = ["stem", "layer1.0.conv1", "layer1.0.conv2", "layer1.1.conv1", "layer1.1.conv2"]


def test_without_rules_every_layer_that_can_converts() -> None:
    found = claims("lrt")
    assert [name for name, each in found.items() if each.method] == [*CONVS, "fc"]
    assert (found["fc"].method, found["fc"].rule, found["fc"].reason) == ("lrt", "defaults", None)
    assert found["fc"].settings == Policy().settings_for(None)[1]
    assert found["attn.out_proj"] == Claim(None, None, None, BLOCKED["attn.out_proj"])
    assert found["layer1.0.bn1"] == Claim(None, None, None, None)


def test_the_first_rule_that_matches_owns_and_the_rest_is_kept() -> None:
    policy = rules({"name": "seconds", "targets": ["**.conv2"], "method": "lrt"}, ["layer1.1"])
    assert owners(policy) == {"layer1.0.conv2": "seconds", "layer1.1.conv1": "rule 2", "layer1.1.conv2": "seconds"}
    found = claims(policy)
    assert (found["layer1.1.conv2"].method, found["layer1.1.conv1"].method) == ("lrt", "flipout")
    assert found["stem"] == Claim(None, None, None, "no rule claims it")


def test_a_rules_ignore_leaves_a_layer_to_later_rules_and_the_top_level_one_to_none() -> None:
    policy = rules(
        {"name": "a", "targets": ["layer1"], "ignore": ["layer1.0"]}, ["layer1.0.conv1"], ignore=["layer1.1.**.conv2"]
    )
    found = claims(policy)
    assert owners(policy) == {"layer1.1.conv1": "a", "layer1.0.conv1": "rule 2"}
    assert found["layer1.1.conv2"].reason == "ignored by 'layer1.1.**.conv2'"
    assert found["layer1.0.conv2"].reason == "'a' ignores it, and no other rule claims it"


def test_a_keep_rule_owns_and_keeps() -> None:
    found = claims(rules({"name": "safe", "targets": ["first"], "method": "keep"}, ["Conv2d"]))
    assert found["stem"] == Claim(None, None, "safe", "method: keep")
    assert found["layer1.0.conv1"].rule == "rule 2"


def test_a_top_level_keep_holds_for_rules_without_a_method() -> None:
    assert owners(rules(["stem"], {"targets": ["fc"], "method": "lrt"}, method="keep")) == {"fc": "rule 2"}


@pytest.mark.parametrize("ignore", ["fc", "head", "head.out", "Linear", "last", "re:head.out"])
def test_the_top_level_ignore_wins_by_any_alias(ignore) -> None:
    assert owners({"ignore": [ignore]}) == dict.fromkeys(CONVS, "defaults")


def test_first_and_last_are_among_what_could_convert() -> None:
    assert owners(rules(["first", "last"])) == {"stem": "rule 1", "fc": "rule 1"}


@pytest.mark.parametrize("target", ["**", "Linear", "type:torch.nn.Linear", "first", "last", "re:"])
def test_a_lone_layer_is_selected_as_the_root(target) -> None:
    assert owners(rules([target]), nn.Linear(2, 2)) == {"": "rule 1"}
    assert owners("flipout", nn.Linear(2, 2)) == {"": "defaults"}


def test_a_class_takes_its_lazy_twin_along() -> None:
    model = nn.Sequential(nn.LazyLinear(3), nn.Linear(3, 3))
    assert owners(rules(["Linear"]), model) == {"0": "rule 1", "1": "rule 1"}
    assert owners(rules(["LazyLinear"]), model) == {"0": "rule 1"}


def test_unmatched_allow_passes_what_selects_nothing_but_not_a_blocked_layer() -> None:
    policy = rules(
        ["fc", "nowhere", "Conv1d", "**.bn1"], ["**"], ["stem"], ["absent"], ignore=["missing"], unmatched="allow"
    )
    assert owners(policy)["fc"] == "rule 1"
    (problem,) = problems(rules(["fc", "attn.out_proj"], unmatched="allow"))
    assert "cannot be converted" in problem


@pytest.mark.parametrize("later", ["Linear", "last", "**", "re:.*"])
def test_a_rule_for_the_rest_may_also_match_what_an_earlier_rule_took(later) -> None:
    assert owners(rules({"name": "a", "targets": ["fc"]}, [later, "Conv2d"]))["fc"] == "a"


def test_one_rule_may_name_both_aliases_and_an_ignored_layer_has_no_quarrel() -> None:
    assert owners(rules(["fc", "head"])) == {"fc": "rule 1"}
    assert owners(rules(["fc", "stem"], ["head", "layer1"], ignore=["Linear"]))["stem"] == "rule 1"


@pytest.mark.parametrize(
    ("data", "model", "says"),
    [
        ("flipout", nn.ReLU(), "the model has no layer that can become variational"),
        ({"rules": [{"targets": ["typo"]}]}, nn.BatchNorm1d(2), "no layer that can become variational"),
        (
            "flipout",
            nn.ModuleDict({"attn": nn.MultiheadAttention(2, 1)}),
            "blocked: 'attn.out_proj': nn.MultiheadAttention reads",
        ),
        ({"method": "keep"}, nn.Linear(2, 2), "the policy converts nothing: 1 layer could become variational"),
        ({"ignore": ["**"]}, nn.Linear(2, 2), "the policy converts nothing"),
        (rules(["absent"], unmatched="allow"), nn.Linear(2, 2), "the policy converts nothing"),
    ],
)
def test_nothing_left_to_convert_has_an_error_of_its_own(data, model, says) -> None:
    with pytest.raises(NothingToConvertError, match=says) as caught:
        claims(data, model)
    assert caught.value.exit_code == 3


SELECTORS = st.sampled_from(
    ["stem", "layer1", "layer1.0", "**.conv2", "Conv2d", "Linear", "fc", "first", "last", "*", "re:.*1"]
)
METHODS = st.sampled_from(["flipout", "lrt", "keep", None])
RULES = st.lists(
    st.tuples(st.lists(SELECTORS, min_size=1, max_size=2), st.lists(SELECTORS, max_size=1), METHODS), max_size=4
)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(RULES, st.lists(SELECTORS, max_size=1))
def test_ownership_is_the_first_rule_that_selects_and_does_not_ignore(drawn, ignore) -> None:
    listed = [
        {"targets": targets, "ignore": spared, **({"method": method} if method else {})}
        for targets, spared, method in drawn
    ]
    candidates, names = view(Net())
    picks = {text: _picked_slowly(text, candidates) for text in SELECTORS.elements}
    try:
        found = claim(Policy.from_dict({"rules": listed, "ignore": ignore, "unmatched": "allow"}), candidates, names)
    except NothingToConvertError:
        found = [Claim(None, None, None, None)] * len(candidates)
    for index, each in enumerate(found):
        ignored = any(index in picks[text] for text in ignore) or not candidates[index].able
        owning = (
            number
            for number, (targets, spared, _) in enumerate(drawn)
            if any(index in picks[text] for text in targets) and not any(index in picks[text] for text in spared)
        )
        owner = None if ignored else next(owning, None)
        method = "flipout" if not drawn and not ignored else None if owner is None else drawn[owner][2] or "flipout"
        assert each.method == (None if method == "keep" else method)


def _picked_slowly(text: str, candidates: list[Candidate]) -> set[int]:
    able = [index for index, candidate in enumerate(candidates) if candidate.able]
    tests = {
        "Conv2d": lambda name, cls: cls is nn.Conv2d,
        "Linear": lambda name, cls: cls is nn.Linear,
        "**.conv2": lambda name, cls: name.split(".")[-1] == "conv2",
        "*": lambda name, cls: True,
        "re:.*1": lambda name, cls: name.endswith("1"),
    }
    if text in ("first", "last"):
        return {able[0 if text == "first" else -1]}
    named = tests.get(text, lambda name, cls: name == text or name.startswith(f"{text}."))
    return {index for index, each in enumerate(candidates) if any(named(name, each.cls) for name in each.names)}
