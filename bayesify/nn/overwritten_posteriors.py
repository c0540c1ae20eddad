"""Posteriors that other code wrote over, value by value: an init loop over all `parameters()`, a copy into the means.

No hook sees that, and a training step writes in the same way. But an init gives a scale the mean and the spread of its
weight's elements, which training does not; and before anything was trained, means that differ from those at conversion
beside scales that do not were not learned. Both are looked for at the first, second, fourth, eighth, ... use.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.parameter import Parameter

from ..distributions.posterior import Posterior
from ..estimators.precision import widened
from .layer_kinds import fan_in
from .starts import moved_since_start

_FEWEST = 64  # elements of all such scales, which are most of the model's: of fewer, mean and spread say too little
_SURE = 4.0  # standard errors
_OTHER_START = math.log(2)  # by which a std's logarithm would start elsewhere

_LOOKS: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()


def tell_of_overwritten(model: nn.Module, layers: Iterable[tuple[str, Any]]) -> None:
    """Warn where a use of the model finds scales, or means, written over; not at every use.

    Args:
        model: whose uses count.
        layers: (name, variational layer) of it.
    """
    if torch._C._len_torch_dispatch_stack() or torch._C._functorch.peek_interpreter_stack() is not None:
        return
    looks = _LOOKS[model] = _LOOKS.get(model, 0) + 1
    if looks.bit_count() != 1:
        return
    pairs = [(name, layer, own) for name, layer in layers for own in layer.means() if _has_values(layer, own)]
    kind = type(model).__name__
    alike = [(name, layer, own) for name, layer, own in pairs if _is_drawn_like_weights(layer, own)]
    scales = [(name, layer.std_of(own)) for name, layer, own in alike]
    if _elements(alike) >= max(_FEWEST, _elements(pairs) / 2):
        std = sum(float(std.detach().mean()) for _, std in scales) / len(scales)
        warnings.warn(f"{kind}: {_named(scales)} are distributed as its weights{_SCALES.format(std)}", stacklevel=4)
    elif looks == 1:
        means = [(name, layer) for name, layer, own in pairs if _is_around_other_means(layer, own)]
        if means:
            warnings.warn(f"{kind}: since conversion the weights{_MEANS.format(_named(means, 'of'))}", stacklevel=4)


_SCALES = (
    ", as if by an init or a copy over all parameters(), and give a std of {:.2g} on average: leave out names that end "
    "in _rho or _log_alpha, and bayesify.reset_posterior(model) starts the posterior anew"
)
_MEANS = (
    " {} have changed and their stds have not, as if by an init or a copy in place, or by an optimizer that does not "
    "hold the scales: bayesify.reset_posterior(model) starts the posterior around the weights as they are now"
)


def _elements(pairs: list[tuple[str, Any, str]]) -> int:
    return sum(layer.scale_of(own).numel() for _, layer, own in pairs)


def _named(found: list[tuple[str, Any]], word: str = "the scales of") -> str:
    return f"{word} {found[0][0] or 'the layer'!r}{f' and {len(found) - 1} more layers' if found[1:] else ''}"


def _has_values(layer: Any, name: str) -> bool:
    own, scale = layer._parameters.get(name), layer.scale_of(name)
    if type(own) is not Parameter or type(scale) is not Parameter or own.is_complex() or own.shape != scale.shape:
        return False
    capturing = own.is_cuda and torch.cuda.is_current_stream_capturing()
    return not (own.is_meta or scale.is_meta or capturing or "_replaced_means" in vars(layer))


@torch.no_grad()
def _is_drawn_like_weights(layer: Any, name: str) -> bool:
    mean, scale = widened(layer._parameters[name].detach()), layer.scale_of(name).detach()
    (spread, middle), (other_spread, other_middle) = (_moments(tensor) for tensor in (mean, scale))
    error = _SURE / math.sqrt(max(mean.numel(), 1))
    if spread == 0 or other_spread == 0:
        return spread == other_spread and middle == other_middle
    near = abs(middle - other_middle) <= error * math.hypot(spread, other_spread)
    return near and abs(math.log(spread / other_spread)) <= error


def _moments(tensor: Tensor) -> Iterator[float]:
    return (float(each) for each in torch.std_mean(tensor, correction=0))


@torch.no_grad()
def _is_around_other_means(layer: Any, name: str) -> bool:
    scale, prior_mean = layer.scale_of(name), layer._buffers.get(f"{name}_prior_mean")
    if not scale.requires_grad or moved_since_start(layer, name) != (True, False):
        return False
    mean: Tensor = layer._parameters[name].detach()
    posterior: Posterior = layer._settings.posterior
    if prior_mean is not None:
        return bool((mean != prior_mean).any())
    if posterior.parameterization == "multiplicative":
        return False
    start = posterior.std(mean, posterior.start(mean, fan_in(layer, name)))
    return bool(abs(float((start.log() - posterior.std(mean, scale).log()).mean())) > _OTHER_START)
