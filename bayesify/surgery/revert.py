"""Takes a conversion back."""

from __future__ import annotations

from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from ..errors import UsageError, did_you_mean
from ..nn.kl import layers_left, terms
from ..nn.parametrized_weights import is_computed, mask, sources
from .all_or_nothing import all_or_nothing
from .copying import copied
from .reset import refuse_lazy
from .rewrite import plain_class_of, take_back

Model = TypeVar("Model", bound=nn.Module)


def revert(model: Model, weights: Literal["mean", "sample"] = "mean", *, inplace: bool = False) -> Model:
    """Take the conversion back: the original classes, hooks, switches and torch.fx graphs again.

    Args:
        model: a converted model; left as it was unless `inplace`. Interrupted, it is as it was or reverted as a whole.
        weights: `mean` keeps the posterior means; `sample` draws one set of weights from the posterior.

    Raises:
        NotVariationalError: the model has no variational layer.
        UsageError: `weights` is another word, or a layer's class was derived from a variational one.
        UninitializedLayerError: `sample`, and a lazy layer has not seen data.
    """
    if weights not in ("mean", "sample"):
        near = did_you_mean(weights, ("mean", "sample"))
        raise UsageError(f"weights={weights!r} is neither 'mean' nor 'sample'.{near}")
    for layer in layers_left(model):
        plain_class_of(layer)
    if weights == "sample":
        refuse_lazy(model, "there is nothing to draw")
        _refuse_computed(model)
    target = model if inplace else copied(model)
    draws = _draws(target) if weights == "sample" else []

    def change() -> None:
        for weight, draw in draws:
            weight.data.copy_(draw)
        take_back(target)

    all_or_nothing(target, change, [weight for weight, _ in draws])
    return target


@torch.no_grad()
def _draws(model: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """(the Parameter that holds a mean, one draw for it), once for each posterior."""
    draws: list[tuple[Tensor, Tensor]] = []
    for term in terms(model):
        layer = term.layers[0]
        draws.append((sources(layer, term.mean_name)[0], layer.draw(term.mean_name)))
    return draws


def _refuse_computed(model: nn.Module) -> None:
    for term in terms(model):
        layer, name = term.layers[0], term.mean_name
        if is_computed(layer, name) and mask(layer, name) is None:
            raise UsageError(
                f"the {name} of {term.layer_name!r} is computed by a parametrization, and no draw of it can be "
                "written: revert to the mean"
            )
