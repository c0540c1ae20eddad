"""Draws of a layer's weights that are held for as long as a block lasts: what `bayesify.draw` switches layers to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UsageError
from ..estimators.eager import rows_together
from ..estimators.precision import autocasted
from ..estimators.products import GroupedProduct, Product
from .folded_batches import fold_of
from .switches import way_of

Spread = Tensor | tuple[Tensor, ...]  # a std; or of each held draw its deviation from the mean


@dataclass(frozen=True, eq=False)
class HeldDraws:
    """One layer's held draws: what stands beside it in `switched`.

    Attributes:
        numbers: by the name of the mean, (draws, *shape) standard normal numbers. A draw is mean + std·number: it
            follows the parameters, and its gradient reaches both.
    """

    numbers: Mapping[str, Tensor]

    @property
    def draws(self) -> int:
        """How many draws are held."""
        return len(next(iter(self.numbers.values())))

    def deviations(self, name: str, std: Tensor) -> tuple[Tensor, ...]:
        """Of each draw, its deviation from the mean."""
        return tuple(std * number for number in self.numbers[name].to(std).unbind())

    def rows(self, name: str, ids: Tensor, draw_of_id: Callable[[], Tensor]) -> Tensor:
        """The numbers (*ids, channels) of those rows of a table that are looked up, each in the draw of its example."""
        numbers = self.numbers[name]
        if self.draws > 1:
            ids = ids + draw_of_id() * numbers.shape[1]
        return nn.functional.embedding(ids, numbers.flatten(0, 1))


def held_draws(layer: nn.Module) -> HeldDraws | None:
    """What the layer is to compute with in this thread or task, where draws are held."""
    way = way_of(layer)
    return way if isinstance(way, HeldDraws) else None


def mapped(spread: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """A linear function of a std, or of the deviation of each draw."""
    return tuple(map(function, spread)) if isinstance(spread, tuple) else function(spread)


def only_draw(layer: nn.Module, deviations: tuple[Tensor, ...]) -> Tensor:
    """The deviation of one draw that serves the whole batch.

    Raises:
        UsageError: several are held, one for each example.
    """
    if len(deviations) > 1:
        raise UsageError(
            f"draws={len(deviations)}: a {type(layer).__name__} computes with its weight before it multiplies by it, "
            "with one draw for the whole batch: hold one draw, or keep the layer by `ignore` in the policy"
        )
    return deviations[0]


def held_product(
    layer: Any, product: Product, inputs: list[Tensor], mean: Tensor, deviations: tuple[Tensor, ...],
    bias: Tensor | None, bias_deviations: tuple[Tensor, ...] | None, *, batch_dim: int,
) -> Tensor:  # fmt: skip
    """The plain product, each example's with its own held draw, or all with the only one."""
    inputs = rows_together(product, inputs)
    biases = [bias] * len(deviations)
    if bias_deviations is not None:
        biases = [deviation if bias is None else bias + deviation for deviation in bias_deviations]
    weights = [mean + deviation for deviation in deviations]
    if len(weights) == 1:
        return _multiplied(product, inputs, weights[0], biases[0])
    dims = [_examples_dim(layer, product, at, x.dim(), batch_dim) for at, x in enumerate(inputs)]
    of_row = draw_of_rows(layer, inputs[0].shape[dims[0]], len(weights), inputs[0].device)
    outputs, rows = [], [(of_row == draw).nonzero().squeeze(1) for draw in range(len(weights))]
    for its, weight, its_bias in zip(rows, weights, biases, strict=True):
        own = [x.index_select(dim, its) for x, dim in zip(inputs, dims, strict=True)]
        outputs.append(_multiplied(product, own, weight, its_bias))
    dim = _examples_dim(layer, product, -1, outputs[0].dim(), batch_dim)
    return torch.cat(outputs, dim).index_select(dim, torch.cat(rows).argsort())


def draw_of_rows(layer: Any, rows: int, draws: int, device: torch.device) -> Tensor:
    """Which draw each row of a layer's input takes: that of its example, by turns.

    Raises:
        UsageError: it is not known which example a row belongs to.
    """
    known = layer._settings.rows > 0 or layer.examples_lead
    if rows != draws and not known:
        raise UsageError(
            f"draws={draws} are for a batch of {draws} examples, and a {type(layer).__name__} has {rows} rows where "
            "examples should be. Call the model with as many examples as draws; if they are folded with something else "
            "there, convert it with example_inputs, which tell"
        )
    fold = fold_of(layer, rows)
    of_example = torch.arange(fold.examples if fold else rows, device=device) % draws
    return fold.spread(of_example, 0, rows) if fold else of_example


def _multiplied(product: Product, inputs: list[Tensor], weight: Tensor, bias: Tensor | None) -> Tensor:
    *inputs, weight, bias = autocasted(*inputs, weight, bias)
    return product(inputs, weight, bias)


def _examples_dim(layer: nn.Module, product: Product, at: int, dims: int, batch_dim: int) -> int:
    """Which dimension of an input of the product (-1: its output) has the examples."""
    examples = product.sign_dims(at, dims, batch_dim) - product.sign_dims(at, dims, -1)
    if len(examples) != 1 or isinstance(product, GroupedProduct):
        raise UsageError(
            f"several draws, one for each example: in a {type(layer).__name__} no dimension holds the examples; hold "
            "one draw, or convert with example_inputs, which may tell where they are"
        )
    return examples.pop()
