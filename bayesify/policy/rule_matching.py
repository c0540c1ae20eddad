"""Matches a policy's rules to a model's layers: which rule owns which layer, and which rules do not fit the model."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from ..errors import NothingToConvertError
from ..nn.settings import Method, Settings
from .policy import Policy
from .problems import Path, Problem
from .sections import Rule
from .selector_hints import counted, ignore_problem, target_problem
from .selectors import Candidate, Candidates, Selector, compiled, picked

ASKED = "a table of rows converts only where a rule names it or its class"
IMPLICIT = "defaults"  # the report's name for the rule of a policy that has no rules


@dataclass(frozen=True)
class Claim:
    """What a policy decides about one candidate.

    Attributes:
        method: the estimator, or None where the layer is kept.
        settings: the layer's settings, or None where it is kept.
        rule: the report's name for the rule that owns the layer, or None.
        reason: why the layer is kept, or None.
    """

    method: Method | None
    settings: Settings | None
    rule: str | None
    reason: str | None


@dataclass(frozen=True)
class RuleMatch:
    """One rule, and which of a model's layers its selectors pick."""

    rule: Rule
    index: int
    candidates: Candidates

    @property
    def label(self) -> str:
        """The report's name for the rule."""
        return self.rule.name or f"rule {self.index + 1}"

    @cached_property
    def targets(self) -> list[Selector]:
        """The compiled targets."""
        return [compiled(text) for text in self.rule.targets]

    @cached_property
    def targeted(self) -> frozenset[int]:
        """The layers that could convert and that the targets pick."""
        picks = ((target, index) for target in self.targets for index in picked(target, self.candidates))
        allowed = {index for target, index in picks if target.claims(self.candidates[index])}
        return self.candidates.able & allowed

    @cached_property
    def ignored(self) -> frozenset[int]:
        """The layers that the rule's own `ignore` leaves to other rules."""
        return frozenset().union(*(picked(compiled(text), self.candidates) for text in self.rule.ignore))

    @cached_property
    def claimed(self) -> frozenset[int]:
        """The layers that the rule would own if it were the only one."""
        return self.targeted - self.ignored

    def names(self, index: int) -> frozenset[str]:
        """Those of a layer's names under which the targets pick it; all of them, if by its class or its position."""
        candidate, names = self.candidates[index], set[str]()
        for target in self.targets:
            if target.by_name:
                names |= {name for name in candidate.names if target.covers(name)}
            elif index in picked(target, self.candidates):
                names |= {*candidate.names}
        return frozenset(names)


def claim(policy: Policy, candidates: Sequence[Candidate], module_names: Collection[str]) -> list[Claim]:
    """What a policy decides about each candidate, in their order.

    Args:
        policy: the policy.
        candidates: every weight-bearing module of the model, in the order of registration.
        module_names: every dotted name in the model, containers and aliases included.

    Raises:
        PolicyError: everything that does not fit the model, each with its rule and line.
        NothingToConvertError: no layer could convert, or the policy leaves none that does.
    """
    candidates, module_names = Candidates(candidates), frozenset(module_names)
    if not candidates.able:
        raise NothingToConvertError(_nothing_able(candidates))
    matches = [RuleMatch(rule, index, candidates) for index, rule in enumerate(policy.rules)]
    ignored = _ignored(policy, candidates)
    policy.origin.refuse(
        [
            *_selector_problems(policy, candidates, module_names),
            *_shadow_problems(policy, matches, ignored),
            *_alias_problems(matches, ignored),
        ]
    )
    claims = _claims(policy, matches, candidates, ignored)
    if not any(claim.method for claim in claims):
        could = f"{counted(len(candidates.able), 'layer')} could become variational"
        raise NothingToConvertError(f"the policy converts nothing: {could}, and it keeps every one")
    return claims


def _claims(
    policy: Policy, matches: Sequence[RuleMatch], candidates: Candidates, ignored: dict[int, str]
) -> list[Claim]:
    owners = _first_of((match, match.claimed) for match in matches)
    sparing = _first_of((match, match.targeted) for match in matches)
    defaults = _converted(policy, None)
    owned = {match.index: _converted(policy, match) for match in matches if match.claimed}
    claims = []
    for index, candidate in enumerate(candidates):
        if not candidate.able:
            claims.append(Claim(None, None, None, candidate.blocked))
        elif index in ignored:
            claims.append(Claim(None, None, None, f"ignored by '{ignored[index]}'"))
        elif index in owners:
            claims.append(owned[owners[index].index])
        elif candidate.asked:
            claims.append(Claim(None, None, None, ASKED))
        elif index in sparing:
            why = f"'{sparing[index].label}' ignores it, and no other rule claims it"
            claims.append(Claim(None, None, None, why))
        else:
            claims.append(Claim(None, None, None, "no rule claims it") if matches else defaults)
    return claims


def _first_of(picks: Iterable[tuple[RuleMatch, frozenset[int]]]) -> dict[int, RuleMatch]:
    """The first rule that picks each layer."""
    first: dict[int, RuleMatch] = {}
    for match, indices in picks:
        for index in indices:
            first.setdefault(index, match)
    return first


def _converted(policy: Policy, owner: RuleMatch | None) -> Claim:
    """What a rule decides about the layers that it owns."""
    method, settings = policy.settings_for(owner.rule if owner else None)
    label = owner.label if owner else IMPLICIT
    return Claim(None, None, label, "method: keep") if method == "keep" else Claim(method, settings, label, None)


def _ignored(policy: Policy, candidates: Candidates) -> dict[int, str]:
    """The layers that the top-level `ignore` keeps, each with the first selector that says so."""
    ignored: dict[int, str] = {}
    for text in policy.ignore:
        for index in picked(compiled(text), candidates):
            ignored.setdefault(index, text)
    return ignored


def _selector_problems(policy: Policy, candidates: Sequence[Candidate], names: Collection[str]) -> list[Problem]:
    allow = policy.unmatched == "allow"
    ignores: list[tuple[Path, str]] = [(("ignore", index), text) for index, text in enumerate(policy.ignore)]
    targets: list[tuple[Path, str]] = []
    for number, rule in enumerate(policy.rules):
        targets += [(("rules", number, "targets", index), text) for index, text in enumerate(rule.targets)]
        ignores += [(("rules", number, "ignore", index), text) for index, text in enumerate(rule.ignore)]
    told = [(path, ignore_problem(compiled(text), candidates, names, allow)) for path, text in ignores]
    told += [(path, target_problem(compiled(text), candidates, names, allow)) for path, text in targets]
    return [Problem(path, sentence) for path, sentence in told if sentence]


def _shadow_problems(policy: Policy, matches: Sequence[RuleMatch], ignored: Collection[int]) -> list[Problem]:
    """The rules that select layers and own none of them."""
    if policy.unmatched == "allow":
        return []
    problems, taken = [], {*ignored}
    for match in matches:
        by = "earlier rules or ignored" if match.claimed else "its own ignore"
        if match.targeted and match.claimed <= taken:
            layers = f"all {len(match.targeted)} layers that it selects are"
            layers = layers if len(match.targeted) > 1 else "the 1 layer that it selects is"
            problems.append(Problem(("rules", match.index), f"can never apply: {layers} taken by {by}."))
        taken |= match.claimed
    return problems


def _alias_problems(matches: Sequence[RuleMatch], ignored: Collection[int]) -> list[Problem]:
    """The layers with two names of which one rule picks one, and a later rule only the other."""
    problems = []
    owners = _first_of((match, match.claimed) for match in matches)
    aliased = {index for index, match in owners.items() if len(match.candidates[index].names) > 1} - {*ignored}
    for later in matches:
        for index in sorted(aliased & later.claimed):
            first = owners[index]
            here, there = first.names(index), later.names(index)
            if here.isdisjoint(there):
                sentence = f"claims '{min(there)}', the very layer that '{first.label}' claims as '{min(here)}'"
                problems.append(Problem(("rules", later.index), f"{sentence}; name both in one rule."))
    return problems


def _nothing_able(candidates: Sequence[Candidate]) -> str:
    blocked = [f"'{candidate.names[0]}': {candidate.blocked}" for candidate in candidates if candidate.blocked]
    more = f"; {len(blocked) - 3} more" if len(blocked) > 3 else ""
    why = f" (blocked: {'; '.join(blocked[:3])}{more})" if blocked else ""
    return f"the model has no layer that can become variational{why}"
