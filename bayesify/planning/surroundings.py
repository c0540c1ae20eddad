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
    """Modules that would run past converted layers in eval mode without gradients, as (canonical name, module).

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
        if isinstance(module, nn.TransformerEncoderLayer) and inside & {id(below) for below in module.modules()}
    )
    fused = {id(module) for _, module in layers}
    encoders = tuple(
        (name, module)
        for name, module in named
        if isinstance(module, nn.TransformerEncoder)
        and getattr(module, "use_nested_tensor", False)
        and fused & {id(below) for below in module.modules()}
    )
    return FusedParents(layers, encoders)


def batch_dim(site: Site) -> int:
    """The dimension of the layer's (batched) input that holds the examples, where a known parent tells; else 0."""
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
    """The name of an attention or recurrent layer beside this layer that takes sequence-first input, or None.

    The nearest block around the layer that holds any such layer is looked into. None for layers that know their layout.
    """
    if _knows_its_layout(site):
        return None
    for name, parent in reversed(site.parents):
        beside = site.forwards.answer(_batch_first_children, parent)
        if beside:
            first = next((key for key, batch_first in beside.items() if not batch_first), None)
            return None if first is None else f"{name}.{first}".lstrip(".")
    return None


def _batch_first_children(parent: nn.Module) -> dict[str, bool]:
    """The `batch_first` of those children that know their layout by it."""
    told = {key: child for key, child in parent.named_children() if "batch_first" in vars(child)}
    return {key: bool(child.batch_first) for key, child in told.items() if layer_kind(child).layout == "batch_first"}


def _knows_its_layout(site: Site) -> bool:
    """Attention works batch-first inside, recurrent layers have `batch_first`, cells see one step of every example."""
    attentions = (parent for _, parent in site.parents if isinstance(parent, nn.MultiheadAttention))
    inside = any(attention.out_proj is site.module for attention in attentions)
    return inside or layer_kind(site.module).layout != "leading"


def folds_windows(site: Site) -> bool:
    """Whether a block of windowed attention holds the layer: such a block calls its layers with windows as examples."""
    return any("window_size" in vars(parent) and "Attention" in type(parent).__name__ for _, parent in site.parents)


def unregistered(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """(name, module) of weight-bearing modules in plain lists, tuples, dicts, or set past registration.

    torch does not count them as parts of the model: not in parameters(), state_dict() or train(). Looks one level deep.
    """
    seen = {id(module) for module in model.modules()}
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            if key in ("_modules", "_parameters", "_buffers", "_actual_script_module"):  # the last is torch's own
                continue
            for inner, held in _held(value):
                for path, below in held.named_modules(prefix=f"{name}.{key}{inner}".lstrip(".")):
                    if id(below) not in seen and bears_weight(below):
                        seen.add(id(below))
                        yield path, below


def _held(value: object) -> Iterator[tuple[str, nn.Module]]:
    if isinstance(value, nn.Module):
        yield "", value
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    yield from ((f"[{key!r}]", held) for key, held in items if isinstance(held, nn.Module))
