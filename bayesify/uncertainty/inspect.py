"""`inspect`: whether the posteriors of a converted model say anything, and what needs attention."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import nn

from ..errors import UsageError
from ..findings import Finding, Origin, PosteriorState, PruningPoint, Quality
from ..nn.kl import layers_of, refuse_lost_posteriors, terms
from ..nn.parametrized_weights import sources
from ..nn.switches import MEAN, switched
from ..report.progress import progressed
from ..surgery.reset import refuse_lazy
from .calibration import Calibration, stored_calibration
from .calls import loader_calls
from .held_out import HeldOut
from .needs_attention import findings_of, noise_that_ruins
from .passes import undisturbed
from .posterior_states import posterior_states, term_name
from .prediction import Task
from .pruning_curve import pruning_curve
from .quality import quality_of
from .scoring import Scoring, scoring_of

_WORST = 3  # layers whose noise alone is told


@dataclass(frozen=True)
class Inspection:
    """What `inspect` found. Plain data; it prints as a table.

    Attributes:
        model: the model's class.
        posteriors: one state for each, in the model's order.
        findings: what needs attention, the gravest first.
        pruning: what it would cost to prune the network.
        quality: how it predicts the data, where there were any with targets.
        calibration: what `calibrate` fitted, where it was called.
        plain_parameters: elements of the Parameters that have no posterior.
        origin: the file that it comes from, where it comes from one.
    """

    model: str
    posteriors: tuple[PosteriorState, ...]
    findings: tuple[Finding, ...]
    pruning: tuple[PruningPoint, ...]
    quality: Quality | None = None
    calibration: Calibration | None = None
    plain_parameters: int = 0
    origin: Origin | None = None

    @property
    def kl(self) -> float:
        """KL(q‖p) in nats, summed over all posteriors."""
        return sum(state.kl for state in self.posteriors)

    @property
    def weights(self) -> int:
        """How many weights have a posterior."""
        return sum(state.weights for state in self.posteriors)

    @property
    def free(self) -> float:
        """The share of them whose removal costs nothing."""
        return sum(state.free * state.weights for state in self.posteriors) / max(self.weights, 1)

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain data, as `bayesify inspect --json` prints it."""
        calibration = None if self.calibration is None else self.calibration.to_dict()
        own = {"kl": self.kl, "weights": self.weights, "free": self.free}
        return {**asdict(replace(self, calibration=None)), **own, "calibration": calibration}

    def as_text(self, *, full: bool = False, width: int | None = None) -> str:
        """The report as plain text without escape codes.

        Args:
            full: a line for every posterior; otherwise repeated blocks are folded where there are many.
            width: no line is longer; the terminal's by default.
        """
        from ..report.posteriors import as_text

        return as_text(self, full=full, width=width)

    def __repr__(self) -> str:
        return self.as_text()

    def _repr_html_(self) -> str:
        from ..report.posteriors import as_html

        return as_html(self)


def inspect(
    model: nn.Module, loader: Iterable[Any] | None = None, *, task: Task | None = None, noise: str | None = None,
    output: str | int | None = None, dim: int = -1, ood: Any = None, samples: int = 32, seed: int = 0,
    progress: bool | None = None,
) -> Inspection:  # fmt: skip
    """Look at every posterior of a converted model, and at how it predicts if there are data; it is left as it was.

    Args:
        loader: held-out batches, to see which layers they reach; with targets, (inputs..., target), and a task (or
            after `calibrate`, which has one) also how the model predicts them, and what pruning costs.
        task, noise, output, dim: as in `calibrate`.
        ood: other inputs, that the model should be unsure of: a tensor, a mapping, or batches.
        samples: draws of the posterior for each prediction.
        seed: of the draws; the global generators are left alone.
        progress: show a bar on stderr; None: on a terminal, where it takes over two seconds.

    Raises:
        NotVariationalError, UninitializedLayerError: as in `calibrate`; also where a layer is on the meta device.
        StalePosteriorError: layers that had a posterior are gone, or a mean was replaced.
        UsageError: the data do not fit the task.
    """
    refuse_lazy(model, "there is no posterior to look at")
    refuse_lost_posteriors(model)
    calibration = stored_calibration(model)
    judged = loader is not None and (task is not None or (calibration is not None and calibration.task is not None))
    if ood is not None and not judged:
        raise UsageError("ood= is compared with held-out data: give their loader, with targets, and task=")
    with undisturbed(model, seed), _flags_kept(model, forget=loader is not None):
        batches = [] if loader is None else list(progressed(loader, "Reading", progress))
        scoring, quality, ruin = None, None, None
        if judged:
            where: Any = {"noise": noise, "output": output, "dim": dim}
            scoring = scoring_of(model, batches, task, samples=samples, seed=seed, **where)
            quality, ruin = _judged(model, scoring, ood)
        else:
            _run(model, batches)
        states, curve = posterior_states(model), pruning_curve(model, scoring)
    findings = findings_of(states, quality, calibration, ruin)
    name, plain = type(model).__name__, _plain_parameters(model)
    return Inspection(name, tuple(states), findings, curve, quality, calibration, plain)


def _run(model: nn.Module, batches: Sequence[Any]) -> None:
    for call in loader_calls(model, batches):
        model(*call.args, **call.kwargs)


@contextmanager
def _flags_kept(model: nn.Module, forget: bool) -> Iterator[None]:
    """Which layers were reached is inside what these passes say, if `forget`, and afterwards what it was."""
    before = [(layer, layer._reached) for layer in layers_of(model)]
    for layer, _ in before if forget else []:
        layer._reached = False
    try:
        yield
    finally:
        for layer, reached in before:
            layer._reached = reached


def _judged(model: nn.Module, scoring: Scoring, ood: Any) -> tuple[Quality, Finding | None]:
    quality, excess = quality_of(model, scoring, ood)
    error = float(excess.std()) / len(excess) ** 0.5 if len(excess) > 1 else 0.0
    mean, sampled = quality.performances[:2]
    ruin = noise_that_ruins(mean.nll, sampled.nll, error, ())
    if ruin is not None:
        ruin = noise_that_ruins(mean.nll, sampled.nll, error, _worst_alone(model, scoring.data))
    return quality, ruin


def _worst_alone(model: nn.Module, data: HeldOut) -> list[tuple[str, float]]:
    """(name, nats an example) of the posteriors whose noise alone costs most, in the first batch."""
    few = replace(data, batches=data.batches[:1])
    layers = layers_of(model)
    costs: dict[str, float] = {}
    with switched(dict.fromkeys(layers, MEAN)):
        least = few.nll(few.outputs(model, 1))
    for name, own in {term_name(term): set(term.layers) for term in terms(model)}.items():
        with switched({layer: MEAN for layer in layers if layer not in own}):
            costs[name] = few.nll(few.outputs(model, 2)) - least
    return sorted(costs.items(), key=lambda pair: -pair[1])[:_WORST]


def _plain_parameters(model: nn.Module) -> int:
    """Elements of the Parameters that are not a mean, nor a scale."""
    own = {id(source) for term in terms(model) for source in sources(term.layers[0], term.mean_name)}
    own |= {id(term.layers[0].scale_of(term.mean_name)) for term in terms(model)}
    return sum(parameter.numel() for parameter in model.parameters() if id(parameter) not in own)
