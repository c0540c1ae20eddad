"""What was found of a converted model: each posterior's state, what needs attention, how it predicts. Plain data."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["not finite", "unreached", "ruins", "optimizer", "prior", "start", "noisy", "uncalibrated", "useless"]

SNR_LEVELS = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)  # of the quantiles of |mean|/std
LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)  # of other quantiles
EDGES = tuple(-4 + step / 4 for step in range(25))  # log10 of std/|mean|, of the histogram; its ends hold all beyond


@dataclass(frozen=True)
class PosteriorState:
    """One posterior, as it is now. At most 60 numbers.

    Attributes:
        name: of its mean, as `named_parameters` has it: `fc.weight`.
        type: its layer's class.
        posterior, prior: as the report on a plan says them.
        weights: how many elements have a posterior.
        pruned: how many others pruning masks.
        kl: KL(q‖p) in nats, summed over the elements.
        snr: quantiles of |mean|/std at `SNR_LEVELS`.
        prior_ratio: quantiles of the posterior's std over the prior's at `LEVELS`. None where the prior has no std.
        from_prior: root mean square of (mean - prior's mean)/prior's std. None where the prior is not a normal one.
        moved: ‖mean - mean at conversion‖/‖mean at conversion‖, where the prior keeps that. Else None.
        free: the share of elements whose removal costs nothing: |mean| is no more than std, so that to remove one costs
            no more than its noise does already. All of them together may cost something: `Inspection.pruning` says.
        histogram: how many elements have a std/|mean| between `EDGES`.
        reached: whether forward passes went through it. None where none has run that could tell.
        mean_moved, scale_moved: whether the mean, and its scale, changed since conversion. None where unknown.
    """

    name: str
    type: str
    posterior: str
    prior: str
    weights: int
    pruned: int
    kl: float
    snr: tuple[float, ...]
    prior_ratio: tuple[float, ...] | None
    from_prior: float | None
    moved: float | None
    free: float
    histogram: tuple[int, ...]
    reached: bool | None = None
    mean_moved: bool | None = None
    scale_moved: bool | None = None

    @property
    def kl_per_weight(self) -> float:
        """Nats for each element."""
        return self.kl / max(self.weights, 1)

    @property
    def noise(self) -> tuple[float, ...]:
        """Quantiles of std/|mean| at `LEVELS`; infinite where the mean is zero."""
        by_level = dict(zip(SNR_LEVELS, self.snr, strict=True))
        values = [by_level[round(1 - level, 2)] for level in LEVELS]
        return tuple(1 / value if value > 0 else math.inf for value in values)


@dataclass(frozen=True)
class Finding:
    """Something that needs attention.

    Attributes:
        kind: one word for it.
        posteriors: the names of those that it is about; none where it is about the whole model.
        what: what is the matter, in a sentence.
        remedy: what to do.
    """

    kind: Kind
    posteriors: tuple[str, ...]
    what: str
    remedy: str


@dataclass(frozen=True)
class PruningPoint:
    """What it costs to prune the whole network by |mean|/std so far.

    Attributes:
        fraction: the share of weights that go.
        snr: the highest |mean|/std among them.
        expected: nats of the training data's likelihood, to second order: Σ ((|mean|/std)² - 1)/2.
        nll, accuracy, rmse: measured on held-out data, where there were any.
    """

    fraction: float
    snr: float
    expected: float
    nll: float | None = None
    accuracy: float | None = None
    rmse: float | None = None


@dataclass(frozen=True)
class Bin:
    """Examples of about the same confidence: how sure the model is of them, and how often it is right."""

    confidence: float
    accuracy: float
    count: int


@dataclass(frozen=True)
class Performance:
    """How one way to predict does on held-out data.

    Attributes:
        name: `mean network`, `sampled`, or `calibrated`.
        nll: mean negative log-likelihood in nats.
        accuracy, ece: classification: the share of right labels, and the expected calibration error.
        rmse: regression, in the targets' unit.
        reliability: classification: bins of equally many examples.
    """

    name: str
    nll: float
    accuracy: float | None = None
    ece: float | None = None
    rmse: float | None = None
    reliability: tuple[Bin, ...] = ()


@dataclass(frozen=True)
class Separation:
    """How well uncertainty tells other data from the model's own.

    Attributes:
        auroc: by measure, the probability that an example of the other data has more of it.
        edges: of the histograms of the model's uncertainty.
        own, other: shares of the examples between the edges.
    """

    auroc: dict[str, float]
    edges: tuple[float, ...]
    own: tuple[float, ...]
    other: tuple[float, ...]


@dataclass(frozen=True)
class Quality:
    """How a model predicts held-out data.

    Attributes:
        task: classification or regression.
        examples, samples: how many targets, and draws of the posterior.
        performances: by the mean network, by sampling, and with the calibration where the model keeps one.
        risks: by measure of uncertainty, the error of the most certain share of the examples, for the shares in
            `shares`: the share of wrong labels, or the root mean square error.
        coverage: (level, share of targets inside) of sets or intervals.
        nll_by_samples: (draws, mean NLL in nats).
        separation: how well the model tells other data from these, where such were given.
    """

    task: str
    examples: int
    samples: int
    performances: tuple[Performance, ...]
    shares: tuple[float, ...]
    risks: dict[str, tuple[float, ...]]
    coverage: tuple[tuple[float, float], ...]
    nll_by_samples: tuple[tuple[int, float], ...]
    separation: Separation | None = None


@dataclass(frozen=True)
class Origin:
    """Where a model comes from, as far as its file says.

    Attributes:
        file: its name.
        checksum: the file's SHA-256.
        versions: of the programs that wrote it.
        plan: the plan that it was converted by, as `Plan.to_dict` says it; the policy is in it.
        command: that which looked at it.
    """

    file: str
    checksum: str
    versions: dict[str, str] = field(default_factory=dict)
    plan: dict[str, object] | None = None
    command: str = ""
