"""What the tests of traps share."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import bayesify

PRETRAINED = {"method": "flipout", "prior": {"mean": "pretrained"}}
METHODS = pytest.mark.parametrize("method", ["flipout", "lrt"])


def reasons(model: nn.Module) -> dict[str, str]:
    return {row.name: str(row.reason) for row in bayesify.plan(model).rows if row.verb == "blocked"}


def differs(model: nn.Module, *inputs: Any, **kwargs: Any) -> bool:
    """Whether two passes differ: False where something runs past the noise."""
    with torch.no_grad():
        return not torch.equal(model(*inputs, **kwargs), model(*inputs, **kwargs))
