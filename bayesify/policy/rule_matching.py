"""Who owns which layer: a policy's rules before a model's layers, and everything in them that does not fit."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property

from ..errors import NothingToConvertError
from ..nn.settings import Method, Settings
from .policy import Policy
from .problems import Path, Problem
from .sections import Rule
from .selector_hints import counted, ignore_problem, target_problem
from .selectors import Candidate, Selector, compiled, picked

ASKED = "a table of rows converts only where a rule names it or its class"
IMPLICIT = "defaults"  # what the report calls the one rule of a policy that has none


@dataclass(frozen=True)
class Claim:
    """What a policy decides about one candidate.

    Attributes:
        method: the estimator, or None where the layer is kept.
        settings: the layer's settings, or None where it is kept.
        rule: what the report calls the rule that owns the layer, if one does.
        reason: why the layer is kept, if it is.
    """

    method: Method | None
    settings: Settings | None
    rule: str | None
    reason: str | None


@dataclass(frozen=True)
class Reach:
    """A rule before a model: which of the candidates its selectors pick."""

    rule: Rule
    index: int
    candidates: Sequence[Candidate]

    @property
    def label(self) -> str:
        """What the report calls the rule."""
        return self.rule.name or f"rule {self.index + 1}"

    @cached_property
    def targets(self) -> list[Selector]:
        """The compiled targets."""
        return [compiled(text) for text in self.rule.targets]

    @cached_property
    def targeted(self) -> frozenset[int]:
        """The layers that the targets pick and that could convert."""
        able = frozenset(index for index, candidate in enumerate(self.candidates) if candidate.able)
        picks = ((target, index) for target in self.targets for index in picked(target, self.candidates))
        return able & {index for target, index in picks if target.claims(self.candidates[index])}

    @cached_property
    def ignored(self) -> frozenset[int]:
        """The layers that the rule's own ignore leaves to others."""
        return frozenset().union(*(picked(compiled(text), self.candidates) for text in self.rule.ignore))

    @cached_property
    def claimed(self) -> frozenset[int]:
        """The layers that the rule would own if it were the only one."""
        return self.targeted - self.ignored

    def names(self, index: int) -> frozenset[str]:
        """Those of a layer's names under which the targets pick it: all of them, if by its class or its position."""
        candidate, found = self.candidates[index], set[str]()
        for target in self.targets:
            if target.by_name:
                found |= {name for name in candidate.names if target.covers(name)}
            elif index in picked(target, self.candidates):
                found |= {*candidate.names}
        return frozenset(found)


def claim(policy: Policy, candidates: Sequence[Candidate], module_names: Collection[str]) -> list[Claim]:
    """What a policy decides about each candidate, in their order.

    Args:
        policy: the policy.
        candidates: every weight-bearing module of the model, in the order of registration.
        module_names: every dotted name in the model, containers and aliases included.

    Raises:
        PolicyError: what does not fit the model, all of it, each with its rule and line.
        NothingToConvertError: no layer could convert, or the policy leaves none that does.
    """
    able = frozenset(index for index, candidate in enumerate(candidates) if candidate.able)
    if not able:
        raise NothingToConvertError(_nothing_able(candidates))
    reaches = [Reach(rule, index, candidates) for index, rule in enumerate(policy.rules)]
    ignored = _ignored(policy, candidates)
    policy.origin.refuse(
        [
            *_selector_problems(policy, candidates, module_names),
            *_shadow_problems(policy, reaches, ignored),
            *_alias_problems(reaches, ignored),
        ]
    )
    claims = [_claim(policy, reaches, index, candidate, ignored) for index, candidate in enumerate(candidates)]
    if not any(each.method for each in claims):
        could = f"{counted(len(able), 'layer')} could become variational"
        raise NothingToConvertError(f"the policy converts nothing: {could}, and it keeps every one")
    return claims


def _claim(
    policy: Policy, reaches: Sequence[Reach], index: int, candidate: Candidate, ignored: dict[int, str]
) -> Claim:
    if not candidate.able:
        return Claim(None, None, None, candidate.blocked)
    if index in ignored:
        return Claim(None, None, None, f"ignored by '{ignored[index]}'")
    owner = next((reach for reach in reaches if index in reach.claimed), None)
    if owner is None and candidate.asked:
        return Claim(None, None, None, ASKED)
    if owner is None and reaches:
        spared = next((reach.label for reach in reaches if index in reach.targeted), None)
        why = f"'{spared}' ignores it, and no other rule claims it" if spared else "no rule claims it"
        return Claim(None, None, None, why)
    method, settings = policy.settings_for(owner.rule if owner else None)
    label = owner.label if owner else IMPLICIT
    if method == "keep":
        return Claim(None, None, label, "method: keep")
    return Claim(method, settings, label, None)


def _ignored(policy: Policy, candidates: Sequence[Candidate]) -> dict[int, str]:
    """The layers that the top-level ignore keeps, each with the first selector that says so."""
    found: dict[int, str] = {}
    for text in policy.ignore:
        for index in picked(compiled(text), candidates):
            found.setdefault(index, text)
    return found


def _selector_problems(policy: Policy, candidates: Sequence[Candidate], names: Collection[str]) -> list[Problem]:
    allow = policy.unmatched == "allow"
    ignores: list[tuple[Path, str]] = [(("ignore", index), text) for index, text in enumerate(policy.ignore)]
    targets: list[tuple[Path, str]] = []
    for number, rule in enumerate(policy.rules):
        targets += [(("rules", number, "targets", index), text) for index, text in enumerate(rule.targets)]
        ignores += [(("rules", number, "ignore", index), text) for index, text in enumerate(rule.ignore)]
    found = [(path, ignore_problem(compiled(text), candidates, names, allow)) for path, text in ignores]
    found += [(path, target_problem(compiled(text), candidates, names, allow)) for path, text in targets]
    return [Problem(path, sentence) for path, sentence in found if sentence]


def _shadow_problems(policy: Policy, reaches: Sequence[Reach], ignored: Collection[int]) -> list[Problem]:
    """The rules that select layers and get none of them."""
    if policy.unmatched == "allow":
        return []
    problems, taken = [], frozenset(ignored)
    for reach in reaches:
        by = "earlier rules or ignored" if reach.claimed else "its own ignore"
        if reach.targeted and reach.claimed <= taken:
            layers = f"all {len(reach.targeted)} layers that it selects are"
            layers = layers if len(reach.targeted) > 1 else "the 1 layer that it selects is"
            problems.append(Problem(("rules", reach.index), f"can never apply: {layers} taken by {by}."))
        taken |= reach.claimed
    return problems


def _alias_problems(reaches: Sequence[Reach], ignored: Collection[int]) -> list[Problem]:
    """The layers with two names of which one rule picks one and a later rule, that doesn't pick that one, the other."""
    problems, taken = [], frozenset(ignored)
    for place, first in enumerate(reaches):
        for later in reaches[place + 1 :]:
            for index in sorted((first.claimed & later.claimed) - taken):
                here, there = first.names(index), later.names(index)
                if here.isdisjoint(there):
                    sentence = f"claims '{min(there)}', the very layer that '{first.label}' claims as '{min(here)}'"
                    problems.append(Problem(("rules", later.index), f"{sentence}; name both in one rule."))
        taken |= first.claimed
    return problems


def _nothing_able(candidates: Sequence[Candidate]) -> str:
    blocked = [f"'{candidate.names[0]}': {candidate.blocked}" for candidate in candidates if candidate.blocked]
    more = f"; {len(blocked) - 3} more" if len(blocked) > 3 else ""
    why = f" (blocked: {'; '.join(blocked[:3])}{more})" if blocked else ""
    return f"the model has no layer that can become variational{why}"
