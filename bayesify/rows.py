"""What a plan is: a row for each module that bears a weight or is switched, and the totals."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from .nn.settings import Method, Settings
from .policy import Policy

Verb = Literal["converts", "keeps", "blocked", "adjusted"]


@dataclass(frozen=True)
class Row:
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


@dataclass(frozen=True)
class Plan:
    """The decision for every site of a model. `print(plan)` shows it as a table.

    `batch_dim` is the dimension of the model's own inputs that holds the batch.
    """

    model: str
    policy: Policy
    rows: tuple[Row, ...]
    totals: dict[str, int] = field(repr=False)
    batch_dim: int = 0

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain data, of one stable shape: model, policy, rows, totals."""
        rows = [row.to_dict() for row in self.rows]
        return {"model": self.model, "policy": self.policy.to_dict(), "rows": rows, "totals": dict(self.totals)}

    def converting(self) -> Iterator[Row]:
        """The rows that convert."""
        return (row for row in self.rows if row.verb == "converts")

    def __repr__(self) -> str:
        from .report import as_text  # rich is imported only when something is shown

        return as_text(self)

    def _repr_html_(self) -> str:
        from .report import as_html

        return as_html(self)
