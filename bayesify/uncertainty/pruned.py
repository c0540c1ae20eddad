"""What `prune` did: which weights went, what is left, and what it cost."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ..escaping import printable
from .scoring import Score


@dataclass(frozen=True)
class PrunedWeight:
    """One weight: how many elements it has, and how many of them are zero now."""

    name: str
    weights: int
    pruned: int


@dataclass(frozen=True)
class Pruned:
    """What `prune` did. Plain data, that prints as a table.

    Attributes:
        snr: the |mean|/std below which weights, or channels, went.
        by: "weight" or "channel".
        rows: the weights that could be pruned.
        skipped: (name, why not) of the weights that could not.
        before, after: how the model predicts the held-out data, if there were any.
        calibrated: whether the model keeps a calibration, which was fitted before it was pruned.
    """

    snr: float
    by: str
    rows: tuple[PrunedWeight, ...]
    skipped: tuple[tuple[str, str], ...] = ()
    before: Score | None = None
    after: Score | None = None
    calibrated: bool = False

    @property
    def weights(self) -> int:
        """How many weights could be pruned."""
        return sum(row.weights for row in self.rows)

    @property
    def pruned(self) -> int:
        """How many of them are zero now."""
        return sum(row.pruned for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain data."""
        return {**asdict(self), "weights": self.weights, "pruned": self.pruned}

    def __repr__(self) -> str:
        share = self.pruned / max(self.weights, 1)
        what = "|mean|/std" if self.by == "weight" else "channels whose root mean square of |mean|/std is"
        head = f"Pruned {self.pruned:,} of {self.weights:,} weights ({share:.1%}): {what} below {self.snr:.3g}"
        rows = [["", "weights", "pruned", ""]]
        rows += [_cells(row) for row in self.rows[:_MOST_ROWS]]
        more = len(self.rows) - _MOST_ROWS
        parts = [head, _table(rows) + (f"\n… and {more} more, in `rows`" if more > 0 else "")]
        scores = [score for score in (self.before, self.after) if score is not None]
        if scores:
            parts.append(_table([["", "NLL", "accuracy" if scores[0].accuracy is not None else "RMSE"]] + [
                [score.name, f"{score.nll:.4f}", _headline(score)] for score in scores
            ]))  # fmt: skip
        parts += ["\n".join(f"Left as it was: {printable(name)} {why}" for name, why in self.skipped)]
        parts += ["Its calibration was fitted before: calibrate it anew."] if self.calibrated else []
        return "\n\n".join(part for part in parts if part)


_MOST_ROWS = 40


def _cells(row: PrunedWeight) -> list[str]:
    share = "all" if row.pruned == row.weights else f"{row.pruned / max(row.weights, 1):.1%}"
    return [printable(row.name), f"{row.weights:,}", f"{row.pruned:,}", share]


def _headline(score: Score) -> str:
    return f"{score.accuracy:.1%}" if score.accuracy is not None else f"{score.rmse:.4g}"


def _table(rows: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ([f"{row[0]:{widths[0]}}", *(f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True))]
             for row in rows)  # fmt: skip
    return "\n".join("  ".join(line).rstrip() for line in lines)
