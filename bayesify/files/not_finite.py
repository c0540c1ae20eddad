"""Weights that are NaN or infinite, which no trained model means to have."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.parameter import is_lazy


def not_finite(model: nn.Module) -> str | None:
    """One sentence about the Parameters that hold NaN or infinite numbers, None if there are none.

    Buffers may hold such numbers (masks of attention do); Parameters on the meta device hold none.
    """
    wrong = {name: count for name, weight in model.named_parameters() if (count := _count(weight))}
    if not wrong:
        return None
    first = next(iter(wrong))
    more = f", the first of {len(wrong)} tensors that do" if len(wrong) > 1 else ""
    return f"{first} has NaN or infinite weights ({wrong[first]} of {model.get_parameter(first).numel()}){more}"


def _count(weight: Tensor) -> int:
    if is_lazy(weight) or weight.is_meta or not (weight.is_floating_point() or weight.is_complex()):
        return 0
    return int(weight.numel() - weight.detach().isfinite().sum())
