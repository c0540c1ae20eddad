"""What a plan finds with example inputs, and models, which the tests of the probe share."""

from __future__ import annotations

from typing import Any

from torch import nn

import bayesify


def settings_of(model: nn.Module, inputs: Any, policy: Any = "flipout") -> dict[str, tuple[int, int, int]]:
    rows = bayesify.plan(model, policy, example_inputs=inputs).converting()
    return {row.name: (row.settings.batch_dim, row.settings.rows, row.settings.run) for row in rows if row.settings}


def notes_of(model: nn.Module, inputs: Any, policy: Any = "flipout") -> dict[str, tuple[str, ...]]:
    return {row.name: row.notes for row in bayesify.plan(model, policy, example_inputs=inputs).rows}
