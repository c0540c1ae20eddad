"""Whether examples, and draws of one, may stand beside each other in dimension 0: passes of few examples tell."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..estimators import noise
from ..estimators.noise import Counts
from ..nn.examples_alone import PartingSought, examples_alone
from ..nn.held_draws import held_draws
from ..nn.kl import variational_layers
from ..nn.posterior_mean import posterior_mean
from .calls import Call
from .parting import Reads, Watch, counts_at_mean, layers_that_part
from .prediction import is_float

MOST_FOLDED = 4  # draws that share one |ΔW|: 16 of them are worth 9 at a fan-in of 20, 4 are worth 3.5
ANY_NUMBER = 2**30

Run = Callable[[Call], list[Any]]  # a forward pass, and its output's leaves


@dataclass(frozen=True)
class Apart:
    """How the examples of a call stand beside each other.

    Attributes:
        numbers: in an example's largest output; 0 where what stands beside an example moves it.
        counts: what noise would be drawn for each example by itself, and for those beside each other; None where that
            was not seen.
        layer: where each example's rows may part into draws; None where that is not known.
        largest: the numbers of a row in the largest tensor after that.
    """

    numbers: int = 0
    counts: tuple[Counts, Counts] | None = None
    layer: nn.Module | None = None
    largest: int = 0


def examples_apart(model: nn.Module, run: Run, call: Call) -> Apart:
    """Whether an example is the same alone as between two others, at the posterior mean."""
    one, three = _one_and_three(call)
    candidates = frozenset() if is_compiled(model) else layers_that_part(model)
    counting = counts_at_mean(model)
    single = PartingSought(counting=counting)
    try:
        with posterior_mean(model):
            with examples_alone(single):
                alone = run(one)
            sought = PartingSought(examples=3, draws=2, candidates=candidates, counting=counting)
            largest = _parted(run, three, alone, sought) if candidates else None
            if largest is None:
                sought = PartingSought(examples=3, candidates=candidates, alone=single.first, counting=counting)
                if _apart(run, three, alone, sought) is None:
                    return Apart()
    except Exception:  # whatever a model raises that cannot take a batch of this size
        return Apart()
    numbers = max([1, *(leaf.numel() for leaf in alone if is_float(leaf))])
    counts = (single.counts.times(3 * sought.draws), sought.counts) if counting else None
    return Apart(numbers, counts, sought.layer if sought.done else None, largest or 0)


def _parted(run: Run, three: Call, alone: list[Any], sought: PartingSought) -> int | None:
    """The numbers of a row in the largest tensor after rows parted; None where they do not, or do not stay apart."""
    try:
        watch = _apart(run, three, alone, sought)
    except Exception:
        return None
    return -(-watch.largest // 6) if watch is not None and sought.done else None


def _apart(run: Run, three: Call, alone: list[Any], sought: PartingSought) -> Watch | None:
    """What watched a pass in which the example between two others gives what it gives alone; None where it does not."""
    watch = Watch(sought)
    with examples_alone(sought), watch, Reads(watch):
        beside = run(three)
    mixed = watch.drawn or watch.read or not _all_are(alone, 3 * sought.draws, sought.draws, beside)
    return None if mixed else watch


def draws_apart(model: nn.Module, run: Run, call: Call, counts: tuple[Counts, Counts] | None) -> int:
    """How many draws may stand beside each other: examples must be given as many signs as each by itself."""
    layers = [layer for _, layer in variational_layers(model)]
    if is_compiled(model) or any(layer._settings.drawn or _holds_one_each(layer) for layer in layers):
        return 1
    if all(layer.method == "lrt" for layer in layers):
        return ANY_NUMBER
    alone, beside = counts or _counted(run, call)
    if alone != beside or not (alone.signs or alone.rows):
        return 1
    return MOST_FOLDED if alone.signs else ANY_NUMBER


def _holds_one_each(layer: nn.Module) -> bool:
    """Whether a draw is held for each example of the batch, by its place there."""
    held = held_draws(layer)
    return held is not None and held.draws > 1


def _counted(run: Run, call: Call) -> tuple[Counts, Counts]:
    counts = []
    for smaller in _one_and_three(call):
        with examples_alone(), noise.counted() as drawn:
            run(smaller)
        counts.append(drawn)
    return counts[0].times(3), counts[1]


def is_compiled(model: nn.Module) -> bool:
    """Whether the model, or a part of it, is compiled: every size of a batch compiles it anew."""
    return hasattr(model, "_orig_mod") or any(module._compiled_call_impl is not None for module in model.modules())


def _one_and_three(call: Call) -> tuple[Call, Call]:
    """The first example, and the same between two others, of which one is smaller and one larger."""
    one = call.batched(lambda tensor: tensor[:1].clone())  # the model may write to it
    tensors = [tensor for tensor in one.tensors if len(tensor)] if one.examples else []
    altered = any(not torch.equal(_altered(tensor, 2), tensor) for tensor in tensors if tensor.dim())
    floats = any(tensor.is_floating_point() for tensor in one.tensors)

    def three(tensor: Tensor) -> Tensor:
        if altered or (floats and not tensor.is_floating_point()):
            return torch.cat([_altered(tensor, 0.5), tensor, _altered(tensor, 2)])
        return torch.cat([_moved(tensor), tensor, _moved(tensor)])

    return one, one.batched(three)


def _altered(tensor: Tensor, factor: float) -> Tensor:
    """Something else of the same kind: an example that another one must not depend on."""
    if tensor.dtype is torch.bool:
        return tensor
    other = tensor.flip(-1) if tensor.dim() > 1 else tensor
    return other * factor if tensor.is_floating_point() else other


def _moved(tensor: Tensor) -> Tensor:
    """Something else, where all is zero or a symmetric row of ids."""
    if tensor.is_floating_point():
        return tensor + 1
    return tensor if tensor.dtype is torch.bool else torch.where(tensor > 0, tensor - 1, tensor + 1)


def _all_are(alone: list[Any], rows: int, at: int, beside: list[Any]) -> bool:
    """Whether each output of one example is this row of that of so many, and other rows are others.

    Where they are not, as under a head of zeros, nothing of what comes before can be seen.
    """
    return all(_is_row(one, rows, at, several) for one, several in zip(alone, beside, strict=True))


def _is_row(alone: Any, rows: int, at: int, beside: Any) -> bool:
    """Whether an output of one example is this row of an output of so many."""
    if not is_float(alone):
        return not isinstance(alone, Tensor)
    if not alone.dim() or len(alone) != 1 or beside.shape != (rows, *alone.shape[1:]):
        return False
    if bool((beside == beside[at]).all()):
        return False
    tolerance, finite = 1e-2 if alone.element_size() < 4 else 1e-4, alone[alone.isfinite()]
    largest = float(finite.abs().max()) if finite.numel() else 0.0
    return torch.allclose(alone, beside[at : at + 1], rtol=tolerance, atol=tolerance * largest, equal_nan=True)
