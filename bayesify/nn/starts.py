"""Where posteriors started: enough to tell later whether a scale, or a mean, has moved since.

An optimizer that was made before the conversion trains the means and leaves the scales where they are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from ..estimators.precision import widened

KEPT_AS = "_starts"  # the layer's attribute: {name of the mean: (mean of its elements, mean of the scale's)}
_TOLERANCE = 1e-9  # sums in another order, on another device

Starts = Mapping[str, tuple[float, float]]


def remember_start(layer: Any) -> None:
    """Take the means and the scales as they are now for where they started; of those without values nothing."""
    starts = {name: _averages(layer, name) for name in layer.means()}
    vars(layer)[KEPT_AS] = {name: start for name, start in starts.items() if start is not None}


def starts_of(modules: Mapping[str, Any]) -> dict[str, Starts]:
    """What modules remember, by their names: for a file."""
    return {name: vars(module)[KEPT_AS] for name, module in modules.items() if KEPT_AS in vars(module)}


def put_starts(modules: Mapping[str, Any], starts: Mapping[str, Starts]) -> None:
    """Give it back to the modules of those names."""
    for name, own in starts.items():
        vars(modules[name])[KEPT_AS] = own


def moved_since_start(layer: Any, name: str) -> tuple[bool, bool] | None:
    """(whether the mean has moved, whether its scale has); None where it is not known where they started."""
    start, now = vars(layer).get(KEPT_AS, {}).get(name), _averages(layer, name)
    if start is None or now is None:
        return None
    mean, scale = (not math.isclose(a, b, rel_tol=_TOLERANCE) for a, b in zip(start, now, strict=True))
    return mean, scale


@torch.no_grad()
def _averages(layer: Any, name: str) -> tuple[float, float] | None:
    tensors: list[Tensor] = [layer.mean_of(name), layer.scale_of(name)]
    if any(is_lazy(tensor) or tensor.is_meta for tensor in tensors):
        return None
    mean, scale = (float(widened(tensor.detach()).mean(dtype=torch.float64)) for tensor in tensors)
    return mean, scale
