"""The ledger: a model's KL terms, one for each posterior, and which of them forward passes reached since the reset."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..distributions.normal_kl import NormalTerm
from ..errors import NotVariationalError, StalePosteriorError, UninitializedLayerError
from .base import Variational
from .model_argument import refuse_other_than_model
from .overwritten_posteriors import tell_of_overwritten
from .parametrized_weights import identity
from .posterior_kl import kl_part_of, summed
from .replaced_layers import follow_layers
from .unreached_layers import forget_taken, tell_of_unreached


@dataclass(frozen=True)
class Term:
    """One posterior's contribution to the KL.

    Attributes:
        layer_name: the first layer, in the model's order, that holds the posterior.
        mean_name: the Parameter's own name in its layer: `weight`, `bias`, `in_proj_weight`, ...
        layers: every layer that holds it; more than one where a Parameter is tied. The first one evaluates it.
    """

    layer_name: str
    mean_name: str
    layers: tuple[Variational, ...]

    @property
    def reached(self) -> bool:
        """Whether a forward pass went through any of its layers since the last reset."""
        return any(layer._reached for layer in self.layers)

    def evaluate(self) -> Tensor:
        """The term at the present parameters, in nats.

        Raises:
            UninitializedLayerError: see `part`.
        """
        return summed([self.part()])

    def part(self) -> Tensor | NormalTerm:
        """The term, or what it is computed from together with others: for `summed`.

        Raises:
            UninitializedLayerError: the layer is lazy and has not seen data, or stands on the meta device.
            StalePosteriorError: another layer's Parameter took the place of one after conversion.
        """
        for other in self.layers[1:]:
            other.refuse_replaced_means()
        try:
            return kl_part_of(self.layers[0], self.mean_name)
        except UninitializedLayerError as error:
            layer = f"layer {self.layer_name!r}" if self.layer_name else type(self.layers[0]).__name__
            raise UninitializedLayerError(f"{layer} {error}") from None


class Ledger:
    """A model's `kl`: call it for the sum of its terms. Plain data: deepcopy and pickle carry it with the model."""

    layers: tuple[nn.Module, ...] = ()  # the variational layers that it had, wherever they stand in it

    def __new__(cls, *_: Any) -> Ledger:
        ledger = super().__new__(cls)  # copies and files come by here too
        follow_layers(ledger)
        return ledger

    def __init__(self, root: nn.Module) -> None:
        self.root = root
        self.recount()

    def __call__(self, *, reached: bool = False) -> Tensor:
        """KL(q‖p) in nats, summed over every posterior exactly once; 0-dim, differentiable.

        Args:
            reached: count only the posteriors that forward passes went through since `reset()`.

        Raises:
            NotVariationalError: the model has no posterior.
            UninitializedLayerError: a lazy layer has not seen data, or a layer is on the meta device.
            StalePosteriorError: layers that had a posterior are gone.
        """
        return total_kl(self.root, reached=reached)

    def by_layer(self) -> dict[str, Tensor]:
        """Each layer's KL in nats, by dotted name; a shared posterior counts at the first layer that holds it."""
        self.refuse_lost()
        sums: dict[str, Tensor] = {}
        for term in terms(self.root):
            value = term.evaluate()
            sums[term.layer_name] = sums[term.layer_name] + value if term.layer_name in sums else value
        return sums

    def reset(self) -> None:
        """Forget which layers forward passes went through."""
        for _, layer in variational_layers(self.root):
            layer._reached = False
        forget_taken(self.root)

    def recount(self) -> None:
        """Take the variational layers that the model has now for all that it should have."""
        self.layers = tuple(layer for _, layer in variational_layers(self.root))

    def refuse_lost(self, found: Collection[nn.Module] = ()) -> None:
        """Raise where a layer that had a posterior is in the model no more. Layers that `revert` took back are meant.

        Args:
            found: layers that are known to be in the model.

        Raises:
            StalePosteriorError: how many, and what to do.
        """
        if all(layer in found for layer in self.layers):
            return
        present = set(self.root.modules())
        kept = {layer for layer in present if isinstance(layer, Variational)}
        # a class that other code gave a layer leaves its settings, and revert does not
        gone = [layer for layer in self.layers if "_settings" in vars(layer) and layer not in kept]
        if gone:
            raise StalePosteriorError(
                f"{len(gone)} of {len(self.layers)} variational layers of {type(self.root).__name__} are gone: convert "
                "after layers are fused, merged, resized or replaced, since new ones have no noise (bayesify.revert "
                f"gives the plain model back). The first is {gone[0]}; if it is meant, model.kl.recount() goes on "
                "without them"
            )

    def __repr__(self) -> str:
        return f"<KL of {type(self.root).__name__}: {len(list(terms(self.root)))} posteriors>"


def total_kl(model: nn.Module, *, reached: bool = False) -> Tensor:
    """`model.kl()` by function: works on any part of a converted model, and where a copy lost the attribute.

    Warns, now and then, of posteriors that other code wrote over, and of layers that no forward reaches.
    """
    refuse_other_than_model(model)
    if not torch.compiler.is_compiling():
        tell_of_overwritten(model, variational_layers(model))
        if not reached:
            tell_of_unreached(model, terms)
    return kl_of(model, reached=reached)


def kl_of(model: nn.Module, *, reached: bool = False) -> Tensor:
    """`total_kl`, for who watches the training otherwise."""
    all_terms = terms(model)
    refuse_lost_posteriors(model, {layer for term in all_terms for layer in term.layers})
    if not all_terms:
        raise _not_variational(model)
    parts = [term.part() for term in all_terms if not reached or term.reached]
    if not parts:
        first = all_terms[0]
        return torch.zeros((), device=first.layers[0].mean_of(first.mean_name).device)
    return summed(parts)


def variational_layers(model: nn.Module) -> Iterator[tuple[str, Variational]]:
    """(name, layer) for every variational layer, each once, in the model's order."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, Variational))


def layers_of(model: nn.Module) -> list[Variational]:
    """The variational layers of a model that must have some.

    Raises:
        NotVariationalError: the model has no variational layer.
        StalePosteriorError: it had more when it was converted.
        UsageError: it is not a model.
    """
    layers = layers_left(model)
    refuse_lost_posteriors(model, set(layers))
    return layers


def layers_left(model: nn.Module) -> list[Variational]:
    """`layers_of` a model of which some may be gone."""
    refuse_other_than_model(model)
    layers = [layer for _, layer in variational_layers(model)]
    if not layers:
        raise _not_variational(model)
    return layers


def refuse_lost_posteriors(model: nn.Module, found: Collection[nn.Module] = ()) -> None:
    """Raise where the model had more variational layers when it was converted.

    Args:
        found: layers that are known to be in it.

    Raises:
        StalePosteriorError: which are gone, and what to do.
    """
    for ledger in [value for value in vars(model).values() if isinstance(value, Ledger) and value.root is model]:
        ledger.refuse_lost(found)


def terms(model: nn.Module) -> list[Term]:
    """One term per posterior, in the model's order."""
    holders: dict[tuple[int, ...], list[tuple[str, str, Variational]]] = {}
    for layer_name, layer in variational_layers(model):
        for mean_name in layer.means():
            holders.setdefault(identity(layer, mean_name), []).append((layer_name, mean_name, layer))
    return [Term(*places[0][:2], _padded_last([layer for _, _, layer in places])) for places in holders.values()]


def _padded_last(layers: Sequence[Variational]) -> tuple[Variational, ...]:
    """Embeddings with a padding row come last: the first layer evaluates the KL, and must count every row."""
    if len(layers) == 1:
        return (layers[0],)
    return tuple(sorted(layers, key=lambda layer: getattr(layer, "padding_idx", None) is not None))


def _not_variational(model: nn.Module) -> NotVariationalError:
    return NotVariationalError(f"{type(model).__name__} has no variational layer: call bayesify.convert first")
