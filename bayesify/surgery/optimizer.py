"""Optimizer settings for a converted model: the scales in a group of their own, faster and without weight decay."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.optim import Optimizer

from ..errors import UsageError
from ..nn.kl import layers_of
from ..nn.parametrized_weights import sources

SCALE_SPEED = 2.0  # docs/defaults.md


def param_groups(model: nn.Module, lr: float = 1e-3, **options: Any) -> list[dict[str, Any]]:
    """Parameter groups for any torch optimizer: `torch.optim.Adam(bayesify.param_groups(model, lr=1e-3))`.

    Args:
        lr: the learning rate of the means and all other parameters; scales get twice that.
        options: further options of both groups (`weight_decay=...`); the scales never have weight decay.

    Raises:
        NotVariationalError: the model has no variational layer.
    """
    scales = _scales(model)
    others = [parameter for parameter in model.parameters() if id(parameter) not in scales]
    fast = {**options, "params": [scale for scale, _ in scales.values()], "lr": SCALE_SPEED * lr, "weight_decay": 0.0}
    return [{**options, "params": others, "lr": lr}, fast]


def extend_optimizer(optimizer: Optimizer, model: nn.Module) -> None:
    """Add the scales that `convert(..., inplace=True)` made to an optimizer that existed before.

    Each scale joins with the settings of its mean's group, twice its learning rate and no weight decay. Left out
    are scales whose mean the optimizer does not have, and those that it has already. Make schedulers afterwards.

    Raises:
        UsageError: the optimizer holds none of the model's means: it belongs to the model that was copied.
        NotVariationalError: the model has no variational layer.
    """
    group_of = {id(parameter): group for group in optimizer.param_groups for parameter in group["params"]}
    scales = _scales(model)
    if not any(id(mean) in group_of for _, mean in scales.values()):
        raise UsageError(
            "the optimizer holds none of this model's weights: it was made for the model that was copied; convert with "
            "inplace=True, or make a new optimizer from bayesify.param_groups(model)"
        )
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    joining: dict[int, tuple[dict[str, Any], list[nn.Parameter]]] = {}
    for scale, mean in scales.values():
        if id(mean) in group_of and id(scale) not in group_of:
            group = group_of[id(mean)]
            joining.setdefault(id(group), (group, []))[1].append(scale)
    for group, params in joining.values():
        optimizer.add_param_group(_fast_group(group, params, names))


def decays_scales(optimizer: Optimizer, model: nn.Module) -> bool:
    """Whether the optimizer's weight decay would pull on the scales."""
    scales = _scales(model)
    decaying = [group for group in optimizer.param_groups if group.get("weight_decay")]
    return any(id(parameter) in scales for group in decaying for parameter in group["params"])


def _fast_group(group: dict[str, Any], scales: list[nn.Parameter], names: dict[int, str]) -> dict[str, Any]:
    """The group of some means as the scales' own; `initial_lr` is what a scheduler left there, for the next one."""
    fast = {key: SCALE_SPEED * value if key in ("lr", "initial_lr") else value for key, value in group.items()}
    # where one group names its parameters, torch wants names in all
    params = [(names[id(scale)], scale) for scale in scales] if fast.pop("param_names", None) else scales
    return {**fast, "params": params, "weight_decay": 0.0}


def _scales(model: nn.Module) -> dict[int, tuple[nn.Parameter, nn.Parameter]]:
    """(scale, its mean) by the scale's id."""
    scales = {}
    for layer in layers_of(model):
        for name in layer.means():
            scale = layer.scale_of(name)
            assert scale is not None
            scales[id(scale)] = scale, sources(layer, name)[0]
    return scales
