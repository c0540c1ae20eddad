"""Noisy forward passes: without gradients, the model left as it was, small batches with several draws at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
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
    whole = model.training
    with torch.no_grad(), seeded(model, seed):
        if whole:
            model.eval()
        training = (module for module, _ in modes if module.training)
        kept = [(buffer, buffer.clone()) for module in training for buffer in module.buffers()]
        try:
            yield
        finally:
            for buffer, before in kept:
                buffer.copy_(before)
            if whole:
                model.train()
            for module, mode in modes:
                if module.training is not mode:
                    module.training = mode


class Sampler:
    """Draws the outputs of a model for one call after another.

    Args:
        run: the forward pass.
    """

    def __init__(self, model: nn.Module, run: Run) -> None:
        self.model, self.run = model, run
        self._apart: dict[Any, Apart | None] = {}  # None: structure does not tell, and nothing was tried yet
        self._foldable: dict[Any, int] = {}

    @cached_property
    def _has_prefix(self) -> bool:
        return has_prefix(self.model)

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
        layer = self._how_apart(call).layer if draws > 1 else None
        if layer is None:
            with examples_alone():
                return self.run(_repeated(call, draws))
        parting = Parting(layer, call.examples, draws)
        with examples_alone(parting):
            leaves = self.run(call.batched(torch.clone))  # as repeated rows are: a model may write to its input
        if any(is_float(leaf) and len(leaf) != call.examples * draws for leaf in leaves):
            raise _NotPartedError
        return leaves

    def _expect_less(self, call: Call) -> None:
        """What a pass of several draws failed at is not done again: first parting, then all of them."""
        apart = self._how_apart(call)
        if apart.layer is None:  # a model may refuse so many rows, and take the call as it is
            self._foldable[call.kind] = 1
        self._apart[call.kind] = Apart(apart.numbers)

    def examples_apart(self, call: Call) -> bool:
        """Whether dimension 0 of inputs and outputs holds examples that do not depend on each other.

        What stands beside an example must not move it at the posterior mean. Where that fails to run, the answer is no.
        """
        return self._how_apart(call).numbers > 0

    def _how_apart(self, call: Call) -> Apart:
        known = self._known(call)
        if known is None:
            with _aside(call):
                known = self._apart[call.kind] = examples_apart(self.model, self.run, call)
        return known

    def _known(self, call: Call) -> Apart | None:
        """How examples stand beside each other, as far as no pass is needed to tell."""
        if call.kind not in self._apart:
            self._apart[call.kind] = apart_by_structure(self.model, call)
        return self._apart[call.kind]

    def foldable(self, call: Call) -> int:
        """How many draws of an example dimension 0 may hold: more than 1 where examples and noise are apart there."""
        if call.kind not in self._foldable:
            apart = self._how_apart(call)
            foldable = draws_apart(self.model, self._counting, call, apart.counts) if apart.numbers else 1
            self._foldable[call.kind] = foldable
        return self._foldable[call.kind]

    def _counting(self, call: Call) -> list[Any]:
        with _aside(call):
            return self.run(call)

    def _folded(self, call: Call, samples: int) -> int:
        """How many draws one pass takes: by the sizes of tensors, and one where draws would not be independent."""
        numbers = max((_numbers(tensor) for tensor in call.tensors), default=0)
        if samples == 1 or not call.examples or not numbers:
            return 1
        most = min(MOST_ROWS // call.examples, MOST_NUMBERS // numbers)
        if most <= 1 and self._known(call) is None and not self._trial_pays(call, samples, numbers):
            return 1
        apart = self._how_apart(call)
        if apart.layer is not None:
            most = max(MOST_AFTER_PARTING, numbers) // (max(apart.largest, 1) * call.examples)
        elif apart.numbers:
            most = min(most, MOST_NUMBERS // (apart.numbers * call.examples))
        return max(min(samples, most, self.foldable(call)), 1) if most > 1 else 1

    def _trial_pays(self, call: Call, samples: int, numbers: int) -> bool:
        fits = 6 * numbers <= call.examples * max(MOST_AFTER_PARTING, numbers)  # a trial is no larger than the pass
        return fits and (call.examples * samples >= _WORTH_A_TRIAL or self._has_prefix)


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


@contextmanager
def _aside(call: Call) -> Iterator[None]:
    """Where passes are tried: the draws themselves go on from where they are."""
    with noise_seeded(0), borrowed(sorted({tensor.get_device() for tensor in call.tensors if tensor.is_cuda})):
        yield
