"""What is known of each kind of torch layer, in one place; each family's own file describes its layers here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..estimators.products import LinearProduct, Product
from .parametrized_weights import sources, value
from .settings import Settings


def batch_first_dims(layer: Any, x: Tensor) -> tuple[int, ...]:
    """Where a batched (3-dimensional) input has its examples, by the layer's own `batch_first`; none if unbatched."""
    return (0 if layer.batch_first else 1,) if x.dim() == 3 else ()


@dataclass(frozen=True)
class LayerKind:
    """What all layers of one class, and of its subclasses, have in common.

    Attributes:
        weights: where a layer keeps its weight matrices, whether or not a Parameter is there.
        biases: likewise its biases, as far as they can be variational.
        product: for a layer: the product of its weight, as far as that does not depend on the input.
        fan_in: for (layer, weight name): how many weights one output sums, where the product does not say it.
        example_dims: for (layer, input): the input's dimensions that may hold examples, or None where the layer itself
            knows how they lie. Without this function the product says it.
        layout: `leading` where the examples are wherever the model puts them; `batch_first` where the layer's attribute
            of that name says so; `step` where the layer sees one time step of each example.
        on_sequences: whether a model that has such a layer works on sequences.
        computes: whether the weight may be computed from other Parameters (weight norm, parametrizations).
        maskable: whether torch's pruning may mask a weight of the converted layer, which then computes it.
        lrt: what local reparameterization approximates for such a layer, if anything beside sequences.
    """

    weights: Callable[[Any], Sequence[str]] = lambda layer: ("weight",)
    biases: Callable[[Any], Sequence[str]] = lambda layer: ("bias",)
    product: Callable[[Any], Product] = lambda layer: LinearProduct()
    fan_in: Callable[[Any, str], int] | None = None
    example_dims: Callable[[Any, Tensor], tuple[int, ...] | None] | None = None
    layout: Literal["leading", "batch_first", "step"] = "leading"
    on_sequences: bool = False
    computes: bool = False
    maskable: bool = False
    lrt: str | None = None


def describe(cls: type[nn.Module], kind: LayerKind) -> None:
    """Enter what is known of `cls` and its subclasses."""
    _KINDS[cls] = kind
    _nearest_again.cache_clear()


def layer_kind(layer: nn.Module) -> LayerKind:
    """What is known of a layer: as its nearest described class says, or as of a layer with one `weight` matrix."""
    cls: Any = type(layer)
    return _nearest(cls) if torch.compiler.is_compiling() else _nearest_again(cls)


def _nearest(cls: Any) -> LayerKind:
    return next((_KINDS[base] for base in cls.__mro__ if base in _KINDS), _UNKNOWN)


_nearest_again = lru_cache(1024)(_nearest)  # asked for each posterior of each KL
_KINDS: dict[type[nn.Module], LayerKind] = {nn.LayerNorm: LayerKind(on_sequences=True)}
_UNKNOWN = LayerKind()


def weight_names(layer: nn.Module, settings: Settings | None = None) -> list[str]:
    """The layer's own Parameters that get a posterior: its weight matrices, or those that its settings name."""
    settings = settings or _settings_of(layer)
    if settings is not None and settings.weights:
        return [name for name, _ in settings.weights]
    return [name for name in layer_kind(layer).weights(layer) if sources(layer, name)]


def bias_names(layer: nn.Module) -> list[str]:
    """The layer's own Parameters that get a posterior too where biases are variational."""
    return [name for name in layer_kind(layer).biases(layer) if sources(layer, name)]


def fan_in(layer: Any, name: str, settings: Settings | None = None) -> int:
    """How many elements of the matrix `name` one output sums; for a bias, those of the matrix that it belongs to."""
    settings = settings or _settings_of(layer)
    if settings is not None and settings.weights:
        return int(dict(settings.weights)[name])
    matrix = name.replace("bias", "weight")
    if matrix != name:
        names = weight_names(layer)
        matrix = matrix if matrix in names else names[0]
    kind = layer_kind(layer)
    return kind.fan_in(layer, matrix) if kind.fan_in else kind.product(layer).fan_in(_shape(layer, matrix))


def example_dims(layer: nn.Module, x: Tensor) -> tuple[int, ...] | None:
    """The dimensions of the layer's input that may hold examples; None where the layer itself knows how they lie."""
    kind = layer_kind(layer)
    return kind.example_dims(layer, x) if kind.example_dims else kind.product(layer).free_dims(x.dim())


def _settings_of(layer: nn.Module) -> Settings | None:
    """Those that conversion gave it: of a plain layer, an attribute of that name is the user's."""
    own = vars(layer).get("_settings")
    return own if isinstance(own, Settings) else None


def _shape(layer: nn.Module, name: str) -> torch.Size:
    """The weight's shape, without computing the weight where its posterior's scale has the same shape."""
    weight: Tensor | None = layer._parameters.get(name)
    settings = _settings_of(layer)
    if weight is None and settings is not None:
        weight = layer._parameters.get(f"{name}_{settings.posterior.scale_name}")
    weight = value(layer, name) if weight is None else weight
    assert weight is not None
    return weight.shape
