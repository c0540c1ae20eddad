"""Posteriors that a training's loss does not reach: told, since the KL alone would make priors of them."""

from __future__ import annotations

import warnings

from torch import nn
from torch.optim import Optimizer

from ..nn.kl import terms
from ..report.fold_names import few_names
from .posterior_states import term_name

PATIENCE = 10  # steps; experts and heads that take turns are reached by then


class GradientWatch:
    """Tells once of the scales, among those that an optimizer trains, to which no loss has given a gradient."""

    def __init__(self, model: nn.Module, optimizer: Optimizer) -> None:
        held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        scales = ((term_name(term), term.layers[0].scale_of(term.mean_name)) for term in terms(model))
        self._without = {
            name: scale for name, scale in scales if scale is not None and id(scale) in held and scale.requires_grad
        }
        self._steps = 0

    def look(self) -> None:
        """Look at the gradients, where only the loss has added to them."""
        self._without = {
            name: scale for name, scale in self._without.items() if scale.grad is None or not scale.grad.any()
        }

    def step(self) -> None:
        """Count a step; the last one of the watch tells."""
        self._steps += 1
        if self._steps == PATIENCE:
            self.tell()

    def tell(self) -> None:
        """Warn of what is missing so far, and watch no more."""
        if self._steps and self._without:
            warnings.warn(
                f"in {self._steps} steps the loss gave no gradient to the scales of {few_names(self._without)}: only "
                "the KL moves them, to the prior. The code that computes the loss does not call these layers, or reads "
                "their weights itself, without noise. If that is to stay, leave them out of the policy",
                stacklevel=4,
            )
        self._without = {}
