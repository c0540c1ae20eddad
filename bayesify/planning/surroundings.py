"""What parents do with the layers inside them: torch's fused encoder, layouts, and modules held without registering."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torch import nn

from ..analysis.site import Site
from ..nn.layer_kinds import layer_kind
from .blockers import bears_weight


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
    if "exported_batch_dim" in vars(site.module):
        return int(site.module.exported_batch_dim)  # type: ignore[arg-type]
    if _knows_its_layout(site):
        return 0
    for _, parent in site.parents:
        known = isinstance(parent, nn.TransformerEncoderLayer | nn.TransformerDecoderLayer)
        if known and not getattr(parent.self_attn, "batch_first", True):
            return 1
    return 0


def sequence_first(site: Site) -> str | None:
    """What stands beside the layer and takes sequence-first input: an attention or a recurrent layer, by name.

    Looked for in the nearest block around the layer that has any; None too for layers that know their own layout.
    """
    if _knows_its_layout(site):
        return None
    for name, parent in reversed(site.parents):
        found = {key: child for key, child in parent.named_children() if layer_kind(child).layout == "batch_first"}
        if found:
            first = next((key for key, child in found.items() if not child.batch_first), None)
            return None if first is None else f"{name}.{first}".lstrip(".")
    return None


def _knows_its_layout(site: Site) -> bool:
    """Attention works batch-first inside, recurrent layers have `batch_first`, cells see one step of each example."""
    inside = any(isinstance(each, nn.MultiheadAttention) and each.out_proj is site.module for _, each in site.parents)
    return inside or layer_kind(site.module).layout != "leading"


def folds_windows(site: Site) -> bool:
    """Whether a block of windowed attention holds the layer: it hands its layers windows for examples."""
    return any(hasattr(parent, "window_size") and "Attention" in type(parent).__name__ for _, parent in site.parents)


def unregistered(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """(name, module) of weight-bearing modules that the model holds in plain lists, tuples, dicts or past registration.

    By torch's count they are no part of the model: no parameters(), no state_dict(), no train(). Looks one level deep.
    """
    seen = {id(module) for module in model.modules()}
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            if key in ("_modules", "_parameters", "_buffers"):
                continue
            for inner, held in _held(value):
                for below, each in held.named_modules(prefix=f"{name}.{key}{inner}".lstrip(".")):
                    if id(each) not in seen and bears_weight(each):
                        seen.add(id(each))
                        yield below, each


def _held(value: object) -> Iterator[tuple[str, nn.Module]]:
    if isinstance(value, nn.Module):
        yield "", value
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    yield from ((f"[{key!r}]", each) for key, each in items if isinstance(each, nn.Module))
