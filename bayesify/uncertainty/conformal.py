"""Split conformal prediction: sets and intervals whose coverage is guaranteed where the data are exchangeable.

Vovk et al. 2005; Angelopoulos & Bates 2021, "A gentle introduction to conformal prediction", section 1. The score of a
target says how far out it lies. The quantile of n held-out scores at rank ceil((n + 1)·level) bounds the next one with
probability `level` or more, whatever the model is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_MOST_KEPT = 2000  # scores; of more, so many ranks are kept


@dataclass(frozen=True)
class Conformal:
    """The scores of held-out data.

    Attributes:
        count: how many there were.
        ranks: the ranks that are kept, from 1 and ascending; all where there are few.
        scores: the scores of these ranks.
    """

    count: int
    ranks: tuple[int, ...]
    scores: tuple[float, ...]

    @classmethod
    def of(cls, scores: Tensor) -> Conformal:
        """From the scores of all held-out targets, of any shape."""
        ordered = scores.flatten().sort().values
        count = len(ordered)
        kept = min(count, _MOST_KEPT)
        ranks = tuple(math.ceil((at + 1) * count / kept) for at in range(kept))
        return cls(count, ranks, tuple(ordered[[rank - 1 for rank in ranks]].tolist()))

    def bound(self, level: float) -> float:
        """What the score of a new example stays below with probability `level` or more; inf where n is too small."""
        wanted = math.ceil((self.count + 1) * level - 1e-9)
        at = next((at for at, rank in enumerate(self.ranks) if rank >= wanted), None)
        return math.inf if at is None else self.scores[at]


def mass_before(probabilities: Tensor, dim: int) -> Tensor:
    """For each class the probability of all that are more probable: the score of a label (Romano et al. 2020)."""
    ordered, order = probabilities.sort(dim, descending=True)
    return torch.zeros_like(probabilities).scatter(dim, order, ordered.cumsum(dim) - ordered)
