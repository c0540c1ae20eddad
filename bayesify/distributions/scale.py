"""The rules that give a std to every element of a weight tensor: plain data, which a policy reads without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ..errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Scale:
    """A rule that gives a std to every element of a weight tensor.

    Attributes:
        kind: `constant` (the value itself), `relative` (value·|w|), `fan_in` (value/sqrt(fan_in)) or, for priors,
            `init_std` (value times the posterior's initial std).
        value: the rule's number, above zero.
        floor: for `relative`, the smallest |w| that counts, as a fraction of the tensor's root mean square.
            It keeps a weight that happens to be zero from being pinned there.
    """

    kind: Literal["constant", "relative", "fan_in", "init_std"]
    value: float
    floor: float = 1e-3

    def __str__(self) -> str:
        forms = {"constant": "{:.4g}", "relative": "{:.4g}·|w|", "fan_in": "{:.4g}/√fan_in", "init_std": "{:.4g}×init"}
        return forms[self.kind].format(self.value)

    def to_dict(self) -> float | dict[str, float]:
        """As a policy writes it."""
        return self.value if self.kind == "constant" else {self.kind: self.value}

    def times(self, factor: float) -> Scale:
        """The same rule, its std `factor` times as large."""
        return Scale(self.kind, self.value * factor, self.floor)

    def std(self, weight: Tensor, fan_in: int) -> Tensor | float:
        """The std for each element of `weight`: a float where it is the same for all."""
        if self.kind == "constant":
            return self.value
        if self.kind == "fan_in":
            return float(self.value / max(fan_in, 1) ** 0.5)
        if self.kind == "relative":
            return self.value * magnitude(weight, fan_in, self.floor)
        raise UsageError("init_std is a rule for priors, relative to the posterior's own initial std")


def magnitude(weight: Tensor, fan_in: int, floor: float) -> Tensor:
    """|w|, but at least `floor` times the tensor's root mean square; 1/sqrt(fan_in) stands in where all are zero."""
    return weight.abs().maximum(threshold(weight, fan_in, floor))


def threshold(weight: Tensor, fan_in: int, floor: float) -> Tensor:
    """What `magnitude` is at least, 0-dim."""
    import torch

    rms = (weight.square().sum() / max(weight.numel(), 1)).sqrt()  # summed in pairs, as a norm is not
    return floor * torch.where(rms > 0, rms, max(fan_in, 1) ** -0.5)
