"""Policies: what each setting means, how rules merge over defaults, and what is said about one that is wrong."""

from __future__ import annotations

import copy
import math
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bayesify.distributions.posterior import Posterior, Scale
from bayesify.distributions.prior import LogUniform, Normal, ScaleMixture
from bayesify.errors import PolicyError, UsageError
from bayesify.nn.settings import Settings
from bayesify.policy.policy import Policy

ISSUE = r"""
version: 1
method: flipout
posterior: {parameterization: additive, init_std: auto}
prior: {family: normal, mean: pretrained, std: {init_std: 3.0}}
bias: deterministic
signs: example
frozen: keep
ignore: [conv1, "**.downsample"]
rules:
  - name: head
    targets: [fc]
    method: lrt
    prior: {std: 1.0}
  - name: late stages
    targets: ["layer[34].**.conv?"]
    ignore: ["re:layer4\\.2\\..*"]
  - {name: the rest, targets: [Conv2d, Linear], posterior: {init_std: 0.01}}
"""


def read(text: str, tmp_path: Path) -> Policy:
    path = tmp_path / "policy.yaml"
    path.write_text(text)
    return Policy.from_yaml(path)


def problems(data: Any) -> tuple[str, ...]:
    with pytest.raises(PolicyError) as caught:
        Policy.from_dict(data)
    assert caught.value.exit_code == 2
    return caught.value.problems


DEFAULTS = Settings(Posterior("additive", None), Normal("auto"))


def test_the_default_policy_is_flipout_with_what_the_depth_says() -> None:
    assert Policy().settings_for(None) == ("flipout", DEFAULTS)
    assert Policy.from_dict({}) == Policy() == Policy.parse("flipout")
    assert (Policy().frozen, Policy().unmatched, Policy().rules) == ("keep", "error", ())


def test_each_rule_merges_over_the_defaults_and_never_with_another(tmp_path) -> None:
    policy = read(ISSUE, tmp_path)
    head, late, rest = [policy.settings_for(rule) for rule in policy.rules]
    assert head == ("lrt", Settings(DEFAULTS.posterior, Normal("pretrained", Scale("constant", 1.0))))
    assert late == ("flipout", Settings(DEFAULTS.posterior, Normal()))
    assert rest == ("flipout", Settings(Posterior("additive", Scale("constant", 0.01)), Normal()))


@pytest.mark.parametrize(
    ("prior", "expected"),
    [
        ({}, Normal("auto")),
        ({"mean": "auto"}, Normal("auto")),
        ({"mean": "auto", "std": 2}, Normal("pretrained", Scale("constant", 2.0))),
        ({"mean": "pretrained"}, Normal("pretrained", Scale("init_std", 3.0))),
        ({"mean": "zero"}, Normal(0.0, Scale("init_std", 3.0))),
        ({"mean": 0.5, "std": 2}, Normal(0.5, Scale("constant", 2.0))),
        ({"mean": 0}, Normal(0.0, Scale("init_std", 3.0))),
        ({"std": {"relative": 0.1}}, Normal("pretrained", Scale("relative", 0.1))),
        ({"std": {"fan_in": 1}}, Normal("pretrained", Scale("fan_in", 1.0))),
        ({"std": {"init_std": 2}}, Normal("pretrained", Scale("init_std", 2.0))),
        ({"family": "scale_mixture"}, ScaleMixture(0.5, 1.0, math.exp(-6))),
        ({"family": "scale_mixture", "pi": 0.25, "std2": 0.1}, ScaleMixture(0.25, 1.0, 0.1)),
        ({"family": "log_uniform"}, LogUniform()),
    ],
)
def test_priors_at_the_top_and_in_a_rule_mean_the_same(prior, expected) -> None:
    rest = {"posterior": {"parameterization": "multiplicative"}}
    rule = {"targets": ["fc"], "prior": prior}
    assert Policy.from_dict({"prior": prior, **rest}).settings_for(None)[1].prior == expected
    policy = Policy.from_dict({"rules": [rule], **rest})
    assert policy.settings_for(policy.rules[0])[1].prior == expected


@pytest.mark.parametrize(
    ("init_std", "expected"),
    [
        ("auto", None),
        (0.01, Scale("constant", 0.01)),
        ({"relative": 0.05}, Scale("relative", 0.05)),
        ({"fan_in": 2}, Scale("fan_in", 2.0)),
    ],
)
def test_initial_stds(init_std, expected) -> None:
    policy = Policy.from_dict({"posterior": {"init_std": init_std, "parameterization": "multiplicative"}})
    assert policy.settings_for(None)[1].posterior == Posterior("multiplicative", expected)


def test_a_rule_that_changes_the_family_inherits_no_key_of_the_old_one() -> None:
    policy = Policy.from_dict(
        {
            "prior": {"mean": "zero", "std": 2.0},
            "rules": [
                {"targets": ["a"], "prior": {"family": "scale_mixture", "pi": 0.3}},
                {"targets": ["b"], "prior": {"family": "normal", "std": 1.0}},
            ],
        }
    )
    mixture, normal = [policy.settings_for(rule)[1].prior for rule in policy.rules]
    assert mixture == ScaleMixture(0.3, 1.0, math.exp(-6))
    assert normal == Normal(0.0, Scale("constant", 1.0))
    back = Policy.from_dict(
        {"prior": {"family": "scale_mixture"}, "rules": [{"targets": ["a"], "prior": {"family": "normal"}}]}
    )
    assert back.settings_for(back.rules[0])[1].prior == DEFAULTS.prior


def test_with_method_replaces_the_top_level_method_only() -> None:
    policy = Policy.from_dict({"rules": [{"targets": ["a"], "method": "lrt"}, {"targets": ["b"]}]}, source="x.yaml")
    other = policy.with_method("keep")
    assert [other.settings_for(rule)[0] for rule in other.rules] == ["lrt", "keep"]
    assert (policy.method, other.source) == ("flipout", "x.yaml")
    with pytest.raises(PolicyError, match=r"'lrtt' is not one of flipout, lrt, keep. Did you mean 'lrt'\?"):
        policy.with_method("lrtt")


def test_bias_and_signs_are_inherited_or_a_rules_own() -> None:
    rules = [{"targets": ["a"]}, {"targets": ["b"], "bias": "deterministic", "signs": "example"}]
    policy = Policy.from_dict({"bias": "variational", "signs": "position", "rules": rules})
    found = [policy.settings_for(rule)[1] for rule in policy.rules]
    assert [(each.bias, each.signs) for each in found] == [("variational", "position"), ("deterministic", "example")]


def test_a_log_uniform_default_may_be_made_right_by_each_rule() -> None:
    rule = {"targets": ["fc"], "posterior": {"parameterization": "multiplicative"}}
    policy = Policy.from_dict({"prior": {"family": "log_uniform"}, "rules": [rule]})
    assert policy.settings_for(policy.rules[0])[1].prior == LogUniform()
    assert (
        len(problems({"prior": {"family": "log_uniform"}, "rules": [rule, {"targets": ["x"]}, {"targets": ["y"]}]}))
        == 1
    )
    Policy.from_dict({"prior": {"family": "log_uniform"}, "rules": [rule, {"targets": ["x"], "method": "keep"}]})


def test_a_policy_built_in_python_is_checked_when_it_is_used() -> None:
    policy = Policy(prior={"family": "log_uniform"})  # type: ignore[arg-type]
    with pytest.raises(PolicyError, match="needs posterior"):
        Policy.parse(policy)
    assert Policy.parse(Policy()) == Policy()


def test_a_recursive_mapping_is_refused() -> None:
    loop: dict[str, Any] = {}
    loop["rules"] = [loop]
    assert problems(loop) == ("the policy is nested too deeply",)


@pytest.mark.parametrize("wrong", [3, None, ["flipout"]])
def test_what_is_no_policy_at_all_is_refused(wrong) -> None:
    with pytest.raises(UsageError, match="a policy is a Policy, a mapping, a name or a path"):
        Policy.parse(wrong)


@pytest.mark.parametrize("name", ["mopd", "MOPED", "somewhere/moped.yml", Path("mopeds.yaml")])
def test_a_policy_that_is_not_there_names_the_nearest_preset(name) -> None:
    with pytest.raises(UsageError, match=r"Did you mean 'moped'\? Presets: flipout, last-layer, lora, lrt, moped"):
        Policy.parse(name)


def test_a_policy_prints_copies_pickles_and_hashes(tmp_path) -> None:
    policy = read(ISSUE, tmp_path)
    for other in (copy.deepcopy(policy), pickle.loads(pickle.dumps(policy))):
        assert other == policy
        assert hash(other) == hash(policy)
        assert other.source == policy.source
    assert "targets=('fc',)" in repr(policy)


def test_to_dict_fills_in_everything_and_reads_back_as_the_same(tmp_path) -> None:
    policy = read(ISSUE, tmp_path)
    plain = policy.to_dict()
    again = Policy.from_dict(plain)
    assert [again.settings_for(rule) for rule in again.rules] == [policy.settings_for(rule) for rule in policy.rules]
    assert again.to_dict() == plain
    assert plain["rules"][0]["prior"] == {"family": "normal", "mean": "pretrained", "std": 1.0}
    assert plain["rules"][2]["method"] == "flipout"
    posterior = {"parameterization": "additive", "init_std": "auto", "basis": "weights", "noise_dtype": "weights"}
    assert Policy().to_dict()["posterior"] == posterior
    assert Policy.from_dict({"posterior": {"init_std": 1}}).to_dict()["posterior"]["parameterization"] == "additive"


def test_doubles_of_dicts_and_lists_are_read_alike() -> None:
    from types import MappingProxyType

    rule = MappingProxyType({"targets": ("fc",), "prior": MappingProxyType({"std": 1})})
    assert Policy.from_dict(MappingProxyType({"rules": (rule,)})).rules[0].targets == ("fc",)
    assert Policy.from_dict({"rules": [Policy.from_dict({"rules": [rule]}).rules[0]]}).rules[0].prior.std is not None


def test_import_needs_no_yaml() -> None:
    code = (
        "import sys, bayesify.policy.rule_matching\n"
        "assert not {m for m in sys.modules if m.startswith(('ruamel', 'rich', 'click'))}"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
