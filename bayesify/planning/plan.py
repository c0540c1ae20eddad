"""The plan: a decision for each module that bears a weight or is adjusted, and the totals."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ..decision import Decision
from ..nn.batch_arguments import BatchArgument
from ..policy.policy import Policy
from ..programs.insertion import Insertion


@dataclass(frozen=True)
class Plan:
    """The decision for every site of a model. `print(plan)` shows it as a table.

    Attributes:
        model: the model's class.
        policy: what it was decided by.
        rows: the decisions, in the model's order.
        totals: how many modules convert, stay, are blocked or adjusted, and Parameters before and after.
        batch_arguments: which of the model's own arguments hold the batch, as far as example inputs told.
        insertions: the layers that stand in the model's torch.fx graphs for their products, by the graph's name.
    """

    model: str
    policy: Policy
    rows: tuple[Decision, ...]
    totals: dict[str, int] = field(repr=False)
    batch_arguments: tuple[BatchArgument, ...] = ()
    insertions: dict[str, Insertion] = field(default_factory=dict, repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain data, of one stable shape: model, policy, rows, totals."""
        rows = [row.to_dict() for row in self.rows]
        return {"model": self.model, "policy": self.policy.to_dict(), "rows": rows, "totals": dict(self.totals)}

    def converting(self) -> Iterator[Decision]:
        """The rows that convert."""
        return (row for row in self.rows if row.verb == "converts")

    @property
    def title(self) -> str:
        """The model, and the policy that the plan is for."""
        return f"{self.model}, policy {self.policy.source}" if self.policy.source else self.model

    def as_text(self, *, full: bool = False, width: int | None = None) -> str:
        """The report as plain text without escape codes.

        Args:
            full: a line for every layer; otherwise repeated blocks are folded.
            width: no line is longer; the terminal's by default.
        """
        from ..report.tables import as_text  # rich is imported only when something is shown

        return as_text(self.title, self.rows, self.totals, full=full, width=width)

    def __repr__(self) -> str:
        return self.as_text()

    def _repr_html_(self) -> str:
        from ..report.tables import as_html

        return as_html(self.title, self.rows, self.totals)
