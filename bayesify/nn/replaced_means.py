"""Means that other code replaced after conversion: fused, re-parametrized or pruned for good.

A scale was learned, and a prior was set, for the mean that the layer had. Where another Parameter takes its place, the
posterior still fits if the values are the same; else the layer refuses at its next use. Training, and loading a
state_dict, change the values of a mean and are meant to.
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


class RemembersMeans(nn.Module):
    """A module that remembers what each mean was before it was replaced, until its values were compared.

    No forward pays for that: torch registers a Parameter by `register_parameter`, and takes one away by `delattr`.
    """

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
            StalePosteriorError: which, and what to do.
        """
        if "_replaced_means" in self.__dict__:
            _refuse_replaced(self)

    def __delattr__(self, name: str) -> None:
        if _is_mean(self, name) and type(before := self._parameters.get(name)) is Parameter:
            # a copy, since what parametrizes it may write into the Parameter when it puts it back
            _replaced(self).setdefault(name, before.detach().clone())
        super().__delattr__(name)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        before = dict(_replaced(self))
        super()._load_from_state_dict(*args, **kwargs)
        vars(self)["_replaced_means"] = before
        _forget_if_none(self)


def forget_replaced(layer: nn.Module) -> None:
    """Take the means as they are now for those that the posterior was made for."""
    vars(layer).pop("_replaced_means", None)


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
        before = as_real(before)
        if now is None or (now.shape == before.shape and not _same(now, before)):
            raise StalePosteriorError(
                f"the {name} of {type(layer).__name__} was replaced after conversion, and its std and prior were made "
                f"for other values (conv and batch norm fused?): {_WHAT_TO_DO}"
            )
        if now.shape == before.shape:  # else a ShapeError says more
            del _replaced(layer)[name]
    _forget_if_none(layer)


def _replaced(layer: nn.Module) -> dict[str, Tensor | None]:
    known: dict[str, Tensor | None] = vars(layer).setdefault("_replaced_means", {})
    return known


def _forget_if_none(layer: nn.Module) -> None:
    if not _replaced(layer):
        forget_replaced(layer)


def _is_mean(layer: Any, name: str, scale: str | None = None) -> bool:
    if "_settings" not in vars(layer) or layer.scale_of(name) is None:
        return False
    return scale is None or layer._parameters.get(scale) is layer.scale_of(name)


@torch.no_grad()
def _same(now: Tensor, before: Tensor) -> bool:
    if isinstance(before, UninitializedParameter) or now.is_meta or before.is_meta:
        return True
    return torch.allclose(now.to(before), before, rtol=1e-4, atol=1e-6 * float(before.abs().max()))
