"""Noisy forward passes: without gradients, the model left as it was, small batches with several draws at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..estimators.generators import borrowed, noise_seeded
from ..nn.examples_alone import Parting, examples_alone
from .calls import Call
from .chains import apart_by_structure
from .parting import has_prefix
from .prediction import is_float
from .seeds import seeded
from .trials import Apart, Run, draws_apart, examples_apart

MOST_ROWS = 256  # in a pass of several draws; from there on one draw fills the machine
MOST_NUMBERS = 2**18  # in the largest input of such a pass, and in its largest output
MOST_AFTER_PARTING = 2**20  # numbers in the largest tensor after rows part; or as many as in the inputs
_WORTH_A_TRIAL = 512  # rows in all: of so many, the 7 of a trial are a hundredth
_WORTH_OF_AN_ID = 4096  # an id becomes a vector, and often the logits of a vocabulary


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
        self._apart: dict[Any, Apart] = {}
        self._foldable: dict[Any, int] = {}
        self._has_prefix = has_prefix(model)

    def draws(self, call: Call, samples: int) -> Iterator[list[Any]]:
        """Outputs of so many draws in groups: leaves, each float one of shape (draws, *shape)."""
        while samples > 0:
            draws = self._folded(call, samples)
            try:
                leaves = self._pass(call, draws)
            except Exception:
                if draws == 1:
                    raise
                self._expect_less(call)
                continue
            yield _grouped(leaves, draws)
            samples -= draws

    def _pass(self, call: Call, draws: int) -> list[Any]:
        """One pass of so many draws for each example; what comes before all noise, once for all of them."""
        layer = self._apart[_kind(call)].layer if draws > 1 else None
        if layer is None:
            with examples_alone():
                return self.run(_repeated(call, draws))
        parting = Parting(layer, call.examples, draws)
        with examples_alone(parting):
            leaves = self.run(call.batched(torch.clone))  # as repeated rows are: a model may write to its input
        if not parting.done or any(is_float(leaf) and len(leaf) != call.examples * draws for leaf in leaves):
            raise _NotPartedError
        return leaves

    def _expect_less(self, call: Call) -> None:
        """What a pass of several draws failed at is not done again: first parting, then all of them."""
        key = _kind(call)
        apart = self._apart[key]
        if apart.layer is None:  # a model may refuse so many rows, and take the call as it is
            self._foldable[key] = 1
        self._apart[key] = Apart(apart.numbers)

    def examples_apart(self, call: Call) -> bool:
        """Whether dimension 0 of inputs and outputs holds examples that do not depend on each other.

        What stands beside an example must not move it at the posterior mean. Where that fails to run, the answer is no.
        """
        return self._how_apart(call).numbers > 0

    def _how_apart(self, call: Call) -> Apart:
        known = self._known(call)
        if known is None:
            with noise_seeded(0), borrowed(_cuda(call)):  # the draws themselves go on from where they are
                known = self._apart[_kind(call)] = examples_apart(self.model, self.run, call)
        return known

    def _known(self, call: Call) -> Apart | None:
        """How examples stand beside each other, as far as no pass is needed to tell."""
        key = _kind(call)
        if key not in self._apart and (told := apart_by_structure(self.model, call)) is not None:
            self._apart[key] = told
        return self._apart.get(key)

    def foldable(self, call: Call) -> int:
        """How many draws of an example dimension 0 may hold: more than 1 where examples and noise are apart there."""
        key = _kind(call)
        if key not in self._foldable:
            with noise_seeded(0), borrowed(_cuda(call)):
                apart = self._how_apart(call)
                self._foldable[key] = draws_apart(self.model, self.run, call, apart.counts) if apart.numbers else 1
        return self._foldable[key]

    def _folded(self, call: Call, samples: int) -> int:
        """How many draws one pass takes: by the sizes of tensors, and one where draws would not be independent."""
        numbers = max((_numbers(tensor) for tensor in call.tensors), default=0)
        if samples == 1 or not call.examples or not numbers:
            return 1
        most = min(MOST_ROWS // call.examples, MOST_NUMBERS // numbers)
        fits = 6 * numbers <= call.examples * max(MOST_AFTER_PARTING, numbers)  # a trial is no larger than the pass
        pays = fits and (self._has_prefix or call.examples * samples >= _WORTH_A_TRIAL)
        if most <= 1 and not pays and self._known(call) is None:
            return 1
        apart = self._how_apart(call)
        if apart.layer is not None:
            most = max(MOST_AFTER_PARTING, numbers) // (max(apart.largest, 1) * call.examples)
        elif apart.numbers:
            most = min(most, MOST_NUMBERS // (apart.numbers * call.examples))
        return max(min(samples, most, self.foldable(call)), 1) if most > 1 else 1


class _NotPartedError(Exception):
    """Rows did not part where they did in the trial."""


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


def _kind(call: Call) -> Any:
    return tuple((tensor.shape[1:], tensor.dtype) for tensor in call.tensors)


def _cuda(call: Call) -> list[int]:
    return sorted({tensor.get_device() for tensor in call.tensors if tensor.is_cuda})
