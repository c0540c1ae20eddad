"""Embedding and EmbeddingBag: only the rows that a batch looks up are drawn.

Under Flipout one draw of each such row serves the batch, with signs per example and channel: an example that looks a
row up at two positions sees one value of it, and two examples see uncorrelated ones. The padding row has no posterior.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ShapeError, UsageError
from ..estimators import noise
from ..estimators.flipout import Fold
from .base import LRT, Flipout, Variational
from .folded_batches import fold_of
from .held_draws import draw_of_rows, held_draws
from .hooks import mark_reached
from .layer_kinds import LayerKind, describe
from .switches import is_quiet

__all__ = [
    "FlipoutEmbedding",
    "FlipoutEmbeddingBag",
    "LRTEmbedding",
    "LRTEmbeddingBag",
]


class RowsFamily(Variational):
    """What both layers share: rows of the table, looked up with noise."""

    num_embeddings: int
    padding_idx: int | None
    scale_grad_by_freq: bool
    sparse: bool

    def counted(self, name: str, tensor: Tensor) -> Tensor:
        """All rows but the padding's."""
        if self.padding_idx is None:
            return tensor
        return torch.cat([tensor[: self.padding_idx], tensor[self.padding_idx + 1 :]])

    @torch.no_grad()
    def draw(self, name: str) -> Tensor:
        """One draw of the table; the padding row is as it is."""
        drawn = super().draw(name)
        if self.padding_idx is not None:
            drawn[self.padding_idx] = self.weight[self.padding_idx]
        return drawn

    def _rows(self, ids: Tensor, signs: Callable[[], Tensor | None], draw_of_id: Callable[[int], Tensor]) -> Tensor:
        """The rows (*, channels) of the ids (*), each with noise.

        Args:
            signs: Flipout's (*, channels), or None for LRT.
            draw_of_id: which of so many held draws each id takes (*).
        """
        self.refuse_replaced_means()
        scale = self.scale_of("weight")
        assert scale is not None
        mean, scale_rows = self._look_up(ids, self.weight), self._look_up(ids, scale)
        std = self._settings.posterior.std(mean, scale_rows).to(mean.dtype)
        held = held_draws(self)
        if held is not None:
            eps = held.rows("weight", ids, lambda: draw_of_id(held.draws)).to(std)
        else:
            flipped = signs()
            eps = noise.normal_like(mean) if flipped is None else flipped * self._shared(ids, mean)
        spread = std * eps
        if self.padding_idx is not None:
            spread = spread.masked_fill((ids == self.padding_idx).unsqueeze(-1), 0)
        return mean + spread

    def _look_up(self, ids: Tensor, table: Tensor) -> Tensor:
        flags = self.scale_grad_by_freq, self.sparse
        return F.embedding(ids, table, self.padding_idx, None, 2.0, *flags)

    def _shared(self, ids: Tensor, like: Tensor) -> Tensor:
        """Standard normal numbers of `like`'s shape, the same wherever an id is the same."""
        if self.num_embeddings <= ids.numel():
            return F.embedding(ids, noise.normal_like(self.weight.detach()))
        drawn = noise.normal_like(like.detach().reshape(-1, like.shape[-1]))
        return F.embedding(_slots(ids), drawn)


class EmbeddingFamily(RowsFamily):
    """A table, and ids of any shape."""

    def forward(self, input: Tensor, *, return_kl: bool = False) -> Any:  # type: ignore[override]
        """The plain layer's forward, with noise."""
        mark_reached(self)
        if is_quiet(self):
            output = super().forward(input)
        else:
            output = self._rows(input, lambda: self._signs(input), lambda draws: self._draw_of_id(input, draws))
        return (output, self.kl_divergence()) if return_kl else output

    def _signs(self, ids: Tensor) -> Tensor | None:
        if self.method == "lrt":
            return None
        settings, channels = self._settings, self.weight.shape[1]
        if settings.signs == "position":
            return _drawn([*ids.shape, channels], self.weight)
        at = settings.batch_dim
        shape = [size if dim == at else 1 for dim, size in enumerate(ids.shape)]
        fold = fold_of(self, ids.shape[at]) if 0 <= at < ids.dim() else None
        return _folded([*shape, channels], at, fold, self.weight)


    def _draw_of_id(self, ids: Tensor, draws: int) -> Tensor:
        at = self._settings.batch_dim
        if not 0 <= at < ids.dim():
            raise UsageError(f"draws={draws}: no dimension of the ids {tuple(ids.shape)} holds the examples")
        of_row = draw_of_rows(self, ids.shape[at], draws, ids.device)
        return of_row.view([-1 if dim == at else 1 for dim in range(ids.dim())])


class EmbeddingBagFamily(RowsFamily):
    """A table, and bags of ids: rows (bags, ids), or one after the other, from `offsets` on. A bag is an example."""

    mode: Any
    include_last_offset: bool

    def forward(  # type: ignore[override]
        self, input: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None,
        *, return_kl: bool = False,
    ) -> Any:  # fmt: skip
        """The plain layer's forward, with noise."""
        mark_reached(self)
        if is_quiet(self):
            output = super().forward(input, offsets, per_sample_weights)
        else:
            output = self._bags(input, offsets, per_sample_weights)
        return (output, self.kl_divergence()) if return_kl else output

    def _bags(self, ids: Tensor, offsets: Tensor | None, weights: Tensor | None) -> Tensor:
        if weights is not None and (self.mode != "sum" or weights.shape != ids.shape):
            raise ShapeError(f"per_sample_weights need mode 'sum', not {self.mode!r}, and the shape of the input")
        if (ids.dim() == 2) == (offsets is not None) or ids.dim() not in (1, 2):
            raise ShapeError(f"EmbeddingBag takes ids (bags, ids), or (ids) with offsets; not {tuple(ids.shape)}")
        bags, of = self._bags_of(ids, offsets)
        flat = ids.flatten()
        rows = self._rows(
            flat, lambda: self._signs(flat, bags, of), lambda draws: draw_of_rows(self, bags, draws, ids.device)[of]
        )
        if weights is not None:
            rows = rows * weights.flatten().unsqueeze(1)
        present = torch.ones_like(of) if self.padding_idx is None else (ids.flatten() != self.padding_idx).to(of.dtype)
        return _reduced(self.mode, rows, of, bags, present)

    def _bags_of(self, ids: Tensor, offsets: Tensor | None) -> tuple[int, Tensor]:
        """How many bags there are, and the bag of each id."""
        if offsets is None:
            return ids.shape[0], torch.arange(ids.numel(), device=ids.device) // max(1, ids.shape[1])
        starts = offsets[:-1] if self.include_last_offset else offsets
        places = torch.arange(ids.shape[0], device=ids.device, dtype=starts.dtype)
        return starts.shape[0], torch.searchsorted(starts.contiguous(), places, right=True) - 1

    def _signs(self, ids: Tensor, bags: int, of: Tensor) -> Tensor | None:
        if self.method == "lrt":
            return None
        channels = self.weight.shape[1]
        if self._settings.signs == "position":
            return _drawn([ids.shape[0], channels], self.weight)
        return _folded([bags, channels], 0, fold_of(self, bags), self.weight)[of]


class FlipoutEmbedding(EmbeddingFamily, Flipout, nn.Embedding):
    """nn.Embedding under Flipout: one draw of each row per example."""


class LRTEmbedding(EmbeddingFamily, LRT, nn.Embedding):
    """nn.Embedding with noise for each element that is looked up, which ignores that equal ids share a row."""


class FlipoutEmbeddingBag(EmbeddingBagFamily, Flipout, nn.EmbeddingBag):
    """nn.EmbeddingBag under Flipout: one draw of each row per bag."""


class LRTEmbeddingBag(EmbeddingBagFamily, LRT, nn.EmbeddingBag):
    """nn.EmbeddingBag with noise for each element that is looked up, which ignores that equal ids share a row."""


def _slots(ids: Tensor) -> Tensor:
    """For each id a number below the number of ids, the same for equal ids; of no shape that depends on the data."""
    values, order = ids.flatten().sort()
    fresh = (values[1:] != values[:-1]).to(order.dtype).cumsum(0)
    ranks = torch.cat([torch.zeros_like(order[:1]), fresh])
    return torch.zeros_like(order).scatter(0, order, ranks).view(ids.shape)


def _reduced(mode: str, rows: Tensor, of: Tensor, bags: int, present: Tensor) -> Tensor:
    """The rows of each bag as one, without those that are not present; zeros for an empty bag."""
    start, here = rows.new_zeros(bags, rows.shape[1]), present.unsqueeze(1)
    if mode == "max":
        counted = rows.masked_fill(here == 0, -torch.inf)
        highest = start.scatter_reduce(0, of.unsqueeze(1).expand_as(rows), counted, "amax", include_self=False)
        return highest.masked_fill(highest == -torch.inf, 0)
    total = start.index_add(0, of, rows.masked_fill(here == 0, 0))
    if mode == "sum":
        return total
    count = present.new_zeros(bags).index_add(0, of, present).clamp_min(1)
    return total / count.unsqueeze(1).to(rows.dtype)


def _folded(shape: list[int], dim: int, fold: Fold | None, like: Tensor) -> Tensor:
    if fold is None:
        return _drawn(shape, like)
    rows = shape[dim]
    return fold.spread(_drawn([*shape[:dim], fold.examples, *shape[dim + 1 :]], like), dim, rows)


def _drawn(shape: list[int], like: Tensor) -> Tensor:
    return noise.signs(noise.sign_bits(shape, like), shape, like.dtype)


_TABLE = LayerKind(
    biases=lambda layer: (),
    fan_in=lambda layer, name: 1,  # an output is one element of the table
    lrt="LRT draws for each looked-up element, though equal ids share a row",
)
describe(nn.Embedding, replace(_TABLE, example_dims=lambda layer, ids: tuple(range(ids.dim())), on_sequences=True))
describe(nn.EmbeddingBag, replace(_TABLE, example_dims=lambda layer, ids: (0,) if ids.dim() == 2 else None))
