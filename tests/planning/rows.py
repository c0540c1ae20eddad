"""Rows of a plan by their names."""

from __future__ import annotations

from typing import Any

from torch import nn

from bayesify.decision import Decision
from bayesify.planning.planner import plan


def rows_of(model: nn.Module, policy: Any = "flipout") -> dict[str, Decision]:
    found = plan(model, policy).rows
    assert len({row.name for row in found}) == len(found)
    return {row.name: row for row in found}
