"""What known parents do with the layers inside them: torch's fused encoder, and sequence-first layouts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from .blockers import Site


@dataclass(frozen=True)
class FusedParents:
    """What would run past converted layers in eval mode without gradients, as (canonical name, module).

    Attributes:
        layers: encoder layers, whose fused kernel reads `linear1.weight` without calling `linear1`. Any forward
            (pre-)hook on one switches that off.
        encoders: encoders that would hand them nested tensors; `use_nested_tensor = False` switches that off.
    """

    layers: tuple[tuple[str, nn.TransformerEncoderLayer], ...]
    encoders: tuple[tuple[str, nn.TransformerEncoder], ...]


def fused_parents(model: nn.Module, converted: Iterable[nn.Module]) -> FusedParents:
    """The fused encoder layers around these modules, and the encoders around those that use nested tensors now.

    Subclasses too, whatever their forward is, since it may call super()'s. So are layers that could not fuse as they
    are set now (sequence-first, say): the settings can change later, and the hook costs nothing.
    """
    inside = {id(module) for module in converted}
    named = list(model.named_modules())
    layers = tuple(
        (name, module)
        for name, module in named
        if isinstance(module, nn.TransformerEncoderLayer) and inside & {id(each) for each in module.modules()}
    )
    fused = {id(module) for _, module in layers}
    encoders = tuple(
        (name, module)
        for name, module in named
        if isinstance(module, nn.TransformerEncoder)
        and getattr(module, "use_nested_tensor", False)
        and fused & {id(each) for each in module.modules()}
    )
    return FusedParents(layers, encoders)


def batch_dim(site: Site) -> int:
    """Which dimension of the layer's (batched) input holds the examples, so far as a known parent tells: else 0."""
    for _, parent in site.parents:
        known = isinstance(parent, nn.TransformerEncoderLayer | nn.TransformerDecoderLayer)
        if known and not getattr(parent.self_attn, "batch_first", True):
            return 1
    return 0
