"""What happens to one module, and why: planning decides it, the report shows it, surgery carries it out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from .nn.settings import Method, Settings

Verb = Literal["converts", "keeps", "blocked", "adjusted"]


@dataclass(frozen=True)
class Decision:
    """What happens to one module, and why.

    Attributes:
        name: its dotted name, the first in the model's order; "" is the model itself. `aliases` are its other names.
        verb: converts, keeps (the policy or its kind says so), blocked (it cannot), adjusted (all else).
        type, becomes: class names; `becomes` is None unless it converts.
        rule: the rule that owns it. `reason`: why it is kept, blocked or adjusted.
        parameters_before, parameters_after: of this module itself; a tied Parameter counts where it stands first.
        method, settings: what convert carries out.
        notes: what a careful reader would want to know beside that.
        reads: the modules below, by name from here, whose weights its own forward multiplies by.
        uncompiled: whether Dynamo must leave its forward alone.
    """

    name: str
    aliases: tuple[str, ...]
    verb: Verb
    type: str
    rule: str | None = None
    reason: str | None = None
    becomes: str | None = None
    parameters_before: int = 0
    parameters_after: int = 0
    method: Method | None = None
    settings: Settings | None = None
    notes: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    uncompiled: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain data under the keys that `bayesify convert --json` prints."""
        return {
            "name": self.name, "aliases": list(self.aliases), "verb": self.verb, "type": self.type,
            "becomes": self.becomes, "rule": self.rule, "reason": self.reason,
            "parameters_before": self.parameters_before, "parameters_after": self.parameters_after,
            "posterior": self.settings and self.settings.posterior.to_dict(),
            "prior": self.settings and self.settings.prior.to_dict(),
            "notes": list(self.notes),
        }  # fmt: skip


