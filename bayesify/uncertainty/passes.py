"""Noisy forward passes: without gradients, the model left as it was, small batches with several draws at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..estimators import noise
from ..estimators.generators import borrowed, noise_seeded
from ..nn.examples_alone import Parting, examples_alone
from ..nn.kl import layers_of
from ..nn.posterior_mean import posterior_mean
from .calls import Call
from .parting import layer_of_parting
from .prediction import is_float
from .seeds import seeded

MOST_FOLDED = 4  # draws that share one |ΔW|: 16 of them are worth 9 at a fan-in of 20, 4 are worth 3.5
MOST_ROWS = 256  # in a pass of several draws; from there on one draw fills the machine
MOST_NUMBERS = 2**18  # in the largest input of such a pass, and in its largest output
_WORTH_OF_AN_ID = 4096  # an id becomes a vector, and often the logits of a vocabulary

Run = Callable[[Call], list[Any]]  # a forward pass, and its output's leaves


@contextmanager
def undisturbed(model: nn.Module, seed: int | None) -> Iterator[None]:
    """No gradients and no dropout inside; afterwards modes, buffers and, with a seed, generators are as before.

    A model in train mode as a whole is as training left it: inside it is in eval mode. Where the model is in eval mode
    and modules of it are in train mode (dropout, say), that is on purpose: they stay so, and their buffers are put
    back.
    """
    modes = [(module, module.training) for module in model.modules()]
    with torch.no_grad(), seeded(model, seed):
        if model.training:
            model.eval()
        training = (module for module in model.modules() if module.training)
        kept = [(buffer, buffer.clone()) for module in training for buffer in module.buffers()]
        try:
            yield
        finally:
            for buffer, before in kept:
                buffer.copy_(before)
            if modes[0][1]:
                model.train()
            for module, mode in modes:
                module.training = mode


class Sampler:
    """Draws the outputs of a model for one call after another.

    Args:
        run: the forward pass.
    """

    def __init__(self, model: nn.Module, run: Run) -> None:
        self.model, self.run = model, run
        self._apart: dict[Any, int] = {}
        self._foldable: dict[Any, int] = {}

    def draws(self, call: Call, samples: int) -> Iterator[list[Any]]:
        """Outputs of so many draws in groups: leaves, each float one of shape (draws, *shape)."""
        most = self._folded(call, samples)
        while samples > 0:
            draws = min(most, samples)
            try:
                leaves = self._pass(call, draws)
            except Exception:
                if draws == 1:
                    raise
                # a model may refuse so many rows, and take the call as it is
                self._foldable[_kind(call)], most = 1, 1
                continue
            yield _grouped(leaves, draws)
            samples -= draws

    def _pass(self, call: Call, draws: int) -> list[Any]:
        """One pass of so many draws for each example; what comes before all noise, once for all of them."""
        layer = layer_of_parting(self.model) if draws > 1 else None
        if layer is not None:
            parting = Parting(layer, call.examples, draws)
            with examples_alone(parting):
                leaves = self.run(call)
            if parting.done:
                return leaves
        with examples_alone():
            return self.run(_repeated(call, draws))

    def examples_apart(self, call: Call) -> bool:
        """Whether dimension 0 of inputs and outputs holds examples that do not depend on each other.

        What stands beside an example must not move it at the posterior mean. Where that fails to run, the answer is no.
        """
        return self._numbers_apart(call) > 0

    def _numbers_apart(self, call: Call) -> int:
        """The numbers in an example's largest output; 0 where examples are not apart."""
        key = _kind(call)
        if key not in self._apart:
            with noise_seeded(0), borrowed(_cuda(call)):  # the draws themselves go on from where they are
                self._apart[key] = _examples_apart(self.model, self.run, call)
        return self._apart[key]

    def foldable(self, call: Call) -> int:
        """How many draws of an example dimension 0 may hold: more than 1 where they are apart, and so is their noise.

        Three examples must be given three times the signs of one.
        """
        key = _kind(call)
        if key not in self._foldable:
            with noise_seeded(0), borrowed(_cuda(call)):  # the draws themselves go on from where they are
                apart = self.examples_apart(call)
                self._foldable[key] = _draws_apart(self.model, self.run, call) if apart else 1
        return self._foldable[key]

    def _folded(self, call: Call, samples: int) -> int:
        """How many draws one pass takes: by the input's shape, and one where draws would not be independent."""
        numbers = max((_numbers(tensor) for tensor in call.tensors), default=0)
        if not call.examples or not numbers:
            return 1
        most = min(samples, MOST_ROWS // call.examples, MOST_NUMBERS // numbers)
        if most <= 1 or self.foldable(call) <= 1:
            return 1
        outputs = MOST_NUMBERS // (self._numbers_apart(call) * call.examples)
        return max(min(most, self.foldable(call), outputs), 1)


def _numbers(tensor: Tensor) -> int:
    return tensor.numel() * (1 if tensor.is_floating_point() else _WORTH_OF_AN_ID)


def _repeated(call: Call, times: int) -> Call:
    """(examples · times) rows, those of an example together: what is sorted stays so, as the lengths of sequences."""
    return call if times == 1 else call.batched(lambda tensor: tensor.repeat_interleave(times, 0))


def _grouped(leaves: list[Any], draws: int) -> list[Any]:
    def grouped(leaf: Any) -> Any:
        if not is_float(leaf):
            return leaf
        return leaf.unflatten(0, (-1, draws)).transpose(0, 1) if draws > 1 else leaf.unsqueeze(0)

    return [grouped(leaf) for leaf in leaves]


def _examples_apart(model: nn.Module, run: Run, call: Call) -> int:
    one, three = _one_and_three(call)
    try:
        with posterior_mean(model):
            alone, beside = run(one), run(three)
    except Exception:  # whatever a model raises that cannot take a batch of this size
        return 0
    numbers = max((leaf.numel() for leaf in alone if is_float(leaf)), default=0)
    return max(numbers, 1) if all(map(_is_middle, alone, beside)) else 0


def _draws_apart(model: nn.Module, run: Run, call: Call) -> int:
    layers = layers_of(model)
    compiled = hasattr(model, "_orig_mod") or any(module._compiled_call_impl is not None for module in model.modules())
    if compiled or any(layer._settings.drawn for layer in layers):  # every size compiles anew; one draw for the batch
        return 1
    if all(layer.method == "lrt" for layer in layers):
        return MOST_ROWS
    counts = []
    for smaller in _one_and_three(call):
        with examples_alone(), noise.counted() as drawn:
            run(smaller)
        counts.append(drawn)
    of_one, of_three = ([drawn.signs, drawn.rows] for drawn in counts)
    if not any(of_one) or [[3 * count for count in each] for each in of_one] != of_three:
        return 1
    return MOST_FOLDED if counts[0].signs else MOST_ROWS


def _one_and_three(call: Call) -> tuple[Call, Call]:
    """The first example, and the same between two others."""
    one = call.batched(lambda tensor: tensor[:1])
    return one, one.batched(lambda tensor: torch.cat([_altered(tensor), tensor, _altered(tensor)]))


def _kind(call: Call) -> Any:
    return tuple((tensor.shape[1:], tensor.dtype) for tensor in call.tensors)


def _cuda(call: Call) -> list[int]:
    return sorted({tensor.get_device() for tensor in call.tensors if tensor.is_cuda})


def _altered(tensor: Tensor) -> Tensor:
    """Something else of the same kind: an example that another one must not depend on."""
    if tensor.dtype is torch.bool or tensor.dim() < 2:
        return tensor
    other = tensor.flip(-1)
    return other * 0.5 if tensor.is_floating_point() else other


def _is_middle(alone: Any, beside: Any) -> bool:
    """Whether an output of one example is what it is in the middle of three."""
    if not is_float(alone):
        return not isinstance(alone, Tensor)
    if not alone.dim() or len(alone) != 1 or beside.shape != (3, *alone.shape[1:]):
        return False
    tolerance, finite = 1e-2 if alone.element_size() < 4 else 1e-4, alone[alone.isfinite()]
    largest = float(finite.abs().max()) if finite.numel() else 0.0
    return torch.allclose(alone, beside[1:2], rtol=tolerance, atol=tolerance * largest, equal_nan=True)
