"""What trainers' callbacks share: the figures that they log, and an optimizer's groups for the scales."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim import Optimizer

from ..errors import UsageError
from ..nn.kl import terms, total_kl, variational_layers
from ..surgery.optimizer import decays_scales, extend_optimizer
from ..uncertainty.posterior_states import near_priors


@torch.no_grad()
def posterior_state(model: nn.Module, prefix: str = "posterior") -> dict[str, float]:
    """The KL in nats, the mean std over all weights, and the shares of posteriors at their priors and reached.

    "At prior" is a KL of less than 0.05 nats a weight: the data say nothing of those. "Reached" is by forward passes
    since this was asked last: less than 1 means layers that the loss does not train.
    """
    every = terms(model)
    stds = [term.layers[0].counted(term.mean_name, term.layers[0].std_of(term.mean_name)) for term in every]
    total = sum(float(std.sum(dtype=torch.float64)) for std in stds)
    reached = sum(term.reached for term in every) / len(every)
    for _, layer in variational_layers(model):
        layer._reached = False
    return {
        f"{prefix}/kl": float(total_kl(model)),
        f"{prefix}/mean_std": total / max(1, sum(std.numel() for std in stds)),
        f"{prefix}/at_prior": len(near_priors(model)) / len(every),
        f"{prefix}/reached": reached,
    }


def separate_scales(optimizer: Optimizer, model: nn.Module) -> None:
    """Give the scales that the optimizer holds groups of their own: twice the learning rate, no weight decay.

    Only for an optimizer that has made no step and has no scheduler yet.
    """
    scales = _scales(model)
    for group in optimizer.param_groups:
        kept = [at for at, parameter in enumerate(group["params"]) if id(parameter) not in scales]
        if "param_names" in group:
            group["param_names"] = [group["param_names"][at] for at in kept]
        group["params"] = [group["params"][at] for at in kept]
    extend_optimizer(optimizer, model)


def refuse_decay(optimizer: Optimizer, model: nn.Module, remedy: str) -> None:
    """Raise where weight decay would pull on the scales.

    Raises:
        UsageError: it would; with what to do.
    """
    if decays_scales(optimizer, model):
        raise UsageError(f"the optimizer's weight decay pulls on the posterior's scales, away from the KL: {remedy}")


def _scales(model: nn.Module) -> set[int]:
    layers = (layer for _, layer in variational_layers(model))
    return {id(layer.scale_of(name)) for layer in layers for name in layer.means()}
