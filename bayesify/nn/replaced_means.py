"""Means that other code replaced after conversion: fused, re-parametrized or pruned for good, or made without values.

A scale was learned, and a prior was set, for the mean that the layer had. Where another Parameter takes its place, the
posterior still fits if the values are the same; else the layer refuses at its next use. Training, and loading a
state_dict that has the scale too, change the values of a mean and are meant to.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import Parameter, UninitializedParameter

from ..errors import ShapeError, StalePosteriorError
from .parametrized_weights import as_real, is_pruned, value

_WHAT_TO_DO = (
    "do this to the plain model and convert it then (bayesify.revert gives it back), or start a posterior anew around "
    "the weights as they are now by bayesify.reset_posterior(model)"
)


# in a mean's place: its scale was given memory by `to_empty()`, and no values yet
_UNSET = (
    "came off the meta device without values, as by to_empty(): load the state_dict of a converted model, or a plain "
    "one's by bayesify.load_weights(model, state_dict), or start it around the weights as they are by "
    "bayesify.reset_posterior(model)"
)
# its values were loaded, and its scale's were not
_LOADED = (
    "was made for other values: a state_dict without its scale was loaded, as by load_state_dict(..., strict=False). "
    "bayesify.load_weights(model, state_dict) takes a plain one, bayesify.reset_posterior(model) starts the posterior "
    "around the weights as they are now"
)


class RemembersMeans(nn.Module):
    """A module that remembers what each mean was before it was replaced, until its values were compared.

    No forward pays for that: torch registers a Parameter by `register_parameter`, and takes one away by `delattr`.
    """

    _settings: Any
    means: Any
    scale_of: Any

    def register_parameter(self, name: str, param: Parameter | None) -> None:
        """torch's own; notes that a mean is replaced."""
        before = self._parameters.get(name)
        if _is_mean(self, name) and before is not param:
            if is_pruned(self, name):
                _replaced(self)[name] = None
            elif type(before) is type(param):  # sharded, say: by code that leaves the values as they are
                _replaced(self).setdefault(name, before)
        for mean in [mean for mean in _replaced(self) if _is_mean(self, mean, scale=name)]:
            del _replaced(self)[mean]  # its scale comes with it
        _forget_if_none(self)
        super().register_parameter(name, param)

    def refuse_replaced_means(self) -> None:
        """Raise where a mean was replaced by one of other values.

        Raises:
            StalePosteriorError: which, and what to do; also where `to_empty()` gave a posterior memory, and no values.
        """
        if "_replaced_means" in self.__dict__:
            _refuse_replaced(self)

    def __delattr__(self, name: str) -> None:
        if _is_mean(self, name) and type(before := self._parameters.get(name)) is Parameter:
            # a copy, since what parametrizes it may write into the Parameter when it puts it back
            _replaced(self).setdefault(name, before.detach().clone())
        super().__delattr__(name)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        scales = {name: self.scale_of(name) for name in self.means()} if "_settings" in vars(self) else {}
        on_meta = [name for name, scale in scales.items() if scale is not None and scale.is_meta]
        applied = super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        _replaced(self).update((name, _UNSET) for name in on_meta if not self.scale_of(name).is_meta)
        _forget_if_none(self)
        return applied

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any, **kwargs: Any) -> None:
        before = dict(_replaced(self))
        for name in self.means() if "_settings" in vars(self) else ():
            if f"{prefix}{name}_{self._settings.posterior.scale_name}" in state_dict:
                before = {mean: what for mean, what in before.items() if mean != name or not isinstance(what, str)}
            elif _is_other(state_dict.get(prefix + name), self._parameters.get(name)):
                before.setdefault(name, _LOADED)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        vars(self)["_replaced_means"] = before
        _forget_if_none(self)


def forget_replaced(layer: nn.Module) -> None:
    """Take the means as they are now for those that the posterior was made for."""
    vars(layer).pop("_replaced_means", None)


def forget_unset(layer: nn.Module, name: str) -> None:
    """Its scale has been given values now."""
    recentred = f"{name}_prior_mean" not in layer._buffers
    if vars(layer).get("_replaced_means", {}).get(name) in ((_UNSET, _LOADED) if recentred else (_UNSET,)):
        del _replaced(layer)[name]
        _forget_if_none(layer)


def refuse_resized(name: str, mean: Tensor, scale: Tensor) -> None:
    """Raise where a mean has another shape than its scale was made for.

    Raises:
        ShapeError: both shapes, and what to do.
    """
    if mean.shape != scale.shape:
        raise ShapeError(
            f"{name} has shape {tuple(mean.shape)} but its posterior was made for {tuple(scale.shape)}: resize first, "
            "then convert; or start a posterior anew around the weights as they are now by "
            "bayesify.reset_posterior(model)"
        )


def _refuse_replaced(layer: nn.Module) -> None:
    for name, before in list(_replaced(layer).items()):
        now = value(layer, name)
        if before is None:
            raise StalePosteriorError(
                f"the pruning of {type(layer).__name__}'s {name} was made permanent after conversion, so that its "
                f"pruned weights would be noisy again: {_WHAT_TO_DO}"
            )
        if isinstance(before, str):
            raise StalePosteriorError(f"the posterior of {type(layer).__name__}'s {name} {before}")
        before = as_real(before)
        if now is None or (now.shape == before.shape and not _same(now, before)):
            raise StalePosteriorError(
                f"the {name} of {type(layer).__name__} was replaced after conversion, and its std and prior were made "
                f"for other values (conv and batch norm fused?): {_WHAT_TO_DO}"
            )
        if now.shape == before.shape:  # else a ShapeError says more
            del _replaced(layer)[name]
    _forget_if_none(layer)


def _replaced(layer: nn.Module) -> dict[str, Any]:
    known: dict[str, Any] = vars(layer).setdefault("_replaced_means", {})
    return known


def _forget_if_none(layer: nn.Module) -> None:
    if not _replaced(layer):
        forget_replaced(layer)


def _is_mean(layer: Any, name: str, scale: str | None = None) -> bool:
    if "_settings" not in vars(layer) or layer.scale_of(name) is None:
        return False
    return scale is None or layer._parameters.get(scale) is layer.scale_of(name)


def _is_other(given: Any, present: Any) -> bool:
    """Whether loading it would change the values."""
    plain = (Tensor, Parameter)
    if type(given) not in plain or type(present) not in plain or given.shape != present.shape or not given.numel():
        return False
    return not _same(as_real(given.detach()), as_real(present.detach()))


@torch.no_grad()
def _same(now: Tensor, before: Tensor) -> bool:
    if isinstance(before, UninitializedParameter) or now.is_meta or before.is_meta:
        return True
    return torch.allclose(now.to(before), before, rtol=1e-4, atol=1e-6 * float(before.abs().max()))
