"""Small converted models that the tests of prediction share."""

from __future__ import annotations

from typing import Any

from torch import nn

import bayesify


def network(method: str, *layers: nn.Module, std: float = 0.2) -> Any:
    """A converted network whose noise can be measured."""
    model = bayesify.convert(nn.Sequential(*layers), method)
    bayesify.set_posterior_std(model, std)
    return model.eval()
