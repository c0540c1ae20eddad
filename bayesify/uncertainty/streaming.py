"""Sums over draws that are taken as the draws come: their memory is a few tensors of the output's size."""

from __future__ import annotations

import torch
from torch import Tensor

from ..estimators.precision import widened


class Moments:
    """Mean and variance by Welford's updates, for groups of draws (Chan et al. 1983, eq. 2.1), in float32 or better."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = torch.zeros(())
        self._squares = torch.zeros(())  # the sum of squared deviations from the mean

    def add(self, draws: Tensor) -> None:
        """More draws: (draws, *shape)."""
        draws, more = widened(draws), len(draws)
        mean = draws[0] if more == 1 else draws.mean(0)
        squares = _apart(draws, mean).square_().sum(0) if more > 1 else None
        self.count += more
        if self.count == more:
            self.mean = mean.clone() if squares is None else mean
            self._squares = torch.zeros_like(mean) if squares is None else squares
            return
        if squares is not None:
            self._squares += squares
        step = _apart(mean, self.mean)
        self._squares.addcmul_(step, step, value=(self.count - more) * more / self.count)
        self.mean.add_(step, alpha=more / self.count)

    @property
    def variance(self) -> Tensor:
        """The unbiased variance over draws."""
        return self._squares / (self.count - 1)


def _apart(one: Tensor, other: Tensor) -> Tensor:
    """The difference, and zero between infinities: a masked logit is -inf in every draw."""
    return (one - other).masked_fill_(one == other, 0)


class LogMean:
    """The log of the mean of what is given by its log, by log-sum-exp: no term is rounded to zero."""

    def __init__(self) -> None:
        self.count = 0
        self._log_sum = torch.zeros(())

    def add(self, logs: Tensor) -> None:
        """The logs of more draws: (draws, *shape)."""
        for log in logs:
            reused = None if torch.compiler.is_exporting() else self._log_sum  # a program that drops it must be able to
            self._log_sum = torch.logaddexp(self._log_sum, log, out=reused) if self.count else log.clone()
            self.count += 1

    @property
    def value(self) -> Tensor:
        """log((1/S) Σₛ exp(logₛ))."""
        return self._log_sum - torch.tensor(self.count, dtype=self._log_sum.dtype).log().item()
