"""A draft of one site's decision, filled in stage by stage."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ..analysis.site import Site
from ..decision import Decision
from ..policy.rule_matching import Claim


@dataclass(frozen=True)
class Draft:
    """What is known of one site while its decision is made.

    Attributes:
        site: the module that bears a weight.
        names: all its dotted names, the canonical one first.
        blocked: why it cannot convert, or None.
        claim: what the policy says about it; None before the policy was asked.
        decided: its decision so far; None before it was decided.
    """

    site: Site
    names: tuple[str, ...]
    blocked: str | None
    claim: Claim | None = None
    decided: Decision | None = None

    @property
    def convertible(self) -> bool:
        """Whether it is of a kind that can become variational, and nothing blocks it."""
        return self.blocked is None and (self.site.known or bool(self.site.weights))

    @property
    def claimed(self) -> Claim:
        """What the policy says about it."""
        assert self.claim is not None
        return self.claim

    @property
    def decision(self) -> Decision:
        """Its decision so far."""
        assert self.decided is not None
        return self.decided

    def with_decision(self, **changes: Any) -> Draft:
        """The draft with these fields of its decision replaced."""
        return replace(self, decided=replace(self.decision, **changes))
