"""Layers that no forward reached while the KL was taken again and again: told once, since only the KL trains them.

Whatever calls a model, compiled code, a method beside `forward`, children one by one, marks the layers that it runs. A
layer whose weight is only read, by code that no plan sees, is never marked.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from .starts import moved_since_start

PATIENCE = 16  # KLs; experts and heads that take turns are reached by then

_TAKEN: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()


def tell_of_unreached(model: nn.Module, terms_of: Callable[[nn.Module], Sequence[Any]]) -> None:
    """Warn at the sixteenth KL with gradients where posteriors had no part in any forward, and others had.

    Where none had, it is told only if something was trained meanwhile: another model was called, say.

    Args:
        model: whose KL is taken.
        terms_of: its posteriors, which to find costs as much as the KL of small ones.
    """
    if not torch.is_grad_enabled():
        return
    taken = _TAKEN[model] = _TAKEN.get(model, 0) + 1
    if taken != PATIENCE:
        return
    terms = terms_of(model)
    missed = [term for term in terms if not term.reached and _is_trained(term)]
    if missed and (len(missed) < len(terms) or any(map(_has_moved, missed))):
        more = f" and {len(missed) - 1} more layers" if missed[1:] else ""
        name = missed[0].layer_name or "the layer"
        warnings.warn(f"{type(model).__name__}: {name!r}{more}{_UNREACHED}", stacklevel=4)


def forget_taken(model: nn.Module) -> None:
    """Count from now on: what was reached before is forgotten."""
    _TAKEN.pop(model, None)


_UNREACHED = (
    " had no part in any forward until now: only the KL moves their stds, to the prior. The code that computes the "
    "loss calls another model, or reads their weights itself, without noise; if that is to stay, keep them by `ignore` "
    "in the policy"
)


def _is_trained(term: Any) -> bool:
    return bool(term.layers[0].scale_of(term.mean_name).requires_grad)


def _has_moved(term: Any) -> bool:
    return any(moved_since_start(term.layers[0], term.mean_name) or ())
