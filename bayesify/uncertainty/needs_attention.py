"""What of a model's posteriors needs attention, and what to do about it: the gravest first."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

from ..findings import Finding, Kind, PosteriorState, Quality
from .calibration import Calibration
from .posterior_states import AT_PRIOR

_CONSTANT = 1.1  # between the 5 % and the 95 % quantile of std over the prior's: one factor for all weights
_RUINED = 0.2  # nats of NLL that noise costs each example, beyond two standard errors
_MISCALIBRATED = 0.05  # expected calibration error


_WORDS: dict[Kind, tuple[str, str]] = {  # what is the matter, and what to do
    "not finite": (
        "its numbers are not finite: NaN, or infinite",
        "go back to weights from before; lower the learning rate, or clip gradients",
    ),
    "unreached": (
        "no forward pass went through it",
        "if other data reach it, show those; else keep it out by `ignore` in the policy: nobody sees its noise, and "
        "its KL pulls it to its prior",
    ),
    "optimizer": (
        "its mean was trained and its std stands where conversion put it: the optimizer does not hold the scales",
        "torch.optim.Adam(bayesify.param_groups(model, lr=...)), or bayesify.extend_optimizer(optimizer, model)",
    ),
    "start": (
        "its std is the constant that conversion set: it says nothing of the data",
        "train with the KL, or without training bayesify.fit_std(model, loader), and then bayesify.calibrate",
    ),
    "noisy": (
        "most of its weights have more noise than signal",
        "held-out data show whether that costs anything; bayesify.prune(model, snr=1) removes those weights",
    ),
}


def findings_of(
    states: Sequence[PosteriorState], quality: Quality | None, calibration: Calibration | None, ruin: Finding | None
) -> tuple[Finding, ...]:
    """All that was found. `ruin` is what `noise_that_ruins` said, where there were data to ask."""
    found = [
        _about(states, _not_finite, "not finite"),
        _about(states, _unreached, "unreached"),
        ruin,
        _about(states, _left_by_optimizer, "optimizer"),
        *_at_prior(states, calibration),
        _about(states, _at_start, "start"),
        _about(states, _noisy, "noisy"),
        *_of_predictions(quality, calibration),
    ]
    return tuple(finding for finding in found if finding is not None)


def noise_that_ruins(
    mean_nll: float, sampled_nll: float, error: float, worst: Sequence[tuple[str, float]]
) -> Finding | None:
    """A finding where sampling predicts much worse than the mean network.

    Args:
        mean_nll, sampled_nll: of the two, in nats an example.
        error: the standard error of their difference.
        worst: (name, how many nats its noise alone costs), the worst first.
    """
    cost = sampled_nll - mean_nll
    if not cost > max(2 * error, _RUINED):
        return None
    which = "; alone: " + ", ".join(f"{name} {nats:.2f}" for name, nats in worst) if worst else ""
    return Finding(
        "ruins",
        tuple(name for name, _ in worst),
        f"noise costs {cost:.2f} nats an example beside the mean network{which}",
        "bayesify.calibrate finds the factor for all stds that predicts best; or keep these layers by `ignore`, or "
        "start with less: posterior: {init_std: ...}",
    )


def is_at_prior(state: PosteriorState) -> bool:
    """Whether the posterior is its prior, or that with another std, the same factor for all weights."""
    if state.kl_per_weight < AT_PRIOR:
        return True
    if state.prior_ratio is None or state.from_prior is None or state.scale_moved is False:
        return False
    constant = state.prior_ratio[-1] < _CONSTANT * state.prior_ratio[0]
    return constant and state.from_prior**2 / 2 < AT_PRIOR


def _at_prior(states: Sequence[PosteriorState], calibration: Calibration | None) -> Iterator[Finding]:
    around_weights = [state for state in states if is_at_prior(state) and "w₀" in state.prior]
    others = [state for state in states if is_at_prior(state) and "w₀" not in state.prior]
    constant = "its std is one constant times the weights at conversion"
    if around_weights:
        fitted = calibration is not None and calibration.std_factor != 1
        what = "is its prior, the weights at conversion: " + constant
        remedy = "bayesify.calibrate fits that constant to held-out data; bayesify.fit_std, or less KL (beta), more"
        if fitted:
            remedy = "`calibrate` fitted that constant; bayesify.fit_std, or less KL (beta), would say more"
        yield Finding("prior", _names(around_weights), what, remedy)
    if others:
        yield Finding(
            "prior", _names(others), "is its prior: the data say nothing of its weights",
            "less KL: check n_train, or attach_kl(beta=0.1); a prior around the weights, prior: {mean: pretrained}; "
            "what is at N(0, ·) can go: bayesify.prune(model, snr=1)",
        )  # fmt: skip


def _of_predictions(quality: Quality | None, calibration: Calibration | None) -> Iterator[Finding]:
    if calibration is not None and calibration.scores and not calibration.helps:
        yield Finding("useless", (), "on the calibration data the mean network predicts as well without the noise",
                      "train with the KL for longer, or bayesify.fit_std; a temperature alone would do as well")
    if quality is None or calibration is not None:
        return
    ece = next((way.ece for way in quality.performances if way.name == "sampled"), None)
    if ece is None:
        remedy = "bayesify.calibrate(model, loader, task='regression')"
        yield Finding("uncalibrated", (), "the intervals were never fitted to data", remedy)
    elif ece > _MISCALIBRATED:
        yield Finding("uncalibrated", (), f"confidence is off by {ece:.1%} on average (expected calibration error)",
                      "bayesify.calibrate(model, loader, task='classification') on other held-out data")


def _not_finite(state: PosteriorState) -> bool:
    return not all(map(math.isfinite, (state.kl, *state.snr)))


def _unreached(state: PosteriorState) -> bool:
    return state.reached is False


def _left_by_optimizer(state: PosteriorState) -> bool:
    return state.scale_moved is False and state.mean_moved is True


def _at_start(state: PosteriorState) -> bool:
    return state.scale_moved is False and state.mean_moved is not True and not is_at_prior(state)


def _noisy(state: PosteriorState) -> bool:
    return state.noise[2] > 1 and state.prior != "log-uniform" and not is_at_prior(state)


def _about(states: Sequence[PosteriorState], test: Callable[[PosteriorState], bool], kind: Kind) -> Finding | None:
    names = _names([state for state in states if test(state)])
    return Finding(kind, names, *_WORDS[kind]) if names else None


def _names(states: Sequence[PosteriorState]) -> tuple[str, ...]:
    return tuple(state.name for state in states)
