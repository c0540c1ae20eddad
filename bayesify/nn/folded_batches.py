"""Layers whose batch dimension holds the examples together with something folded in: windows, tokens, frames.

How many rows belong to one example depends on the input's size, and only the model's own input tells how many examples
there are. So hooks on the model note that at the start of each forward, for the layers inside. Where nothing tells,
each row counts as an example.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ..estimators.flipout import Fold
from .batch_arguments import BatchArgument, named
from .hooks import EXAMPLES_ALONG, forget_examples, tell_examples
from .settings import Settings
from .switches import examples_of_forward, last_examples, remember_examples


def watch_examples(model: nn.Module, arguments: Sequence[BatchArgument]) -> None:
    """Have the model tell its folding layers, at every forward, how many examples these arguments hold."""
    setattr(model, EXAMPLES_ALONG, named(arguments, model.forward))
    model.register_forward_pre_hook(tell_examples, with_kwargs=True)
    model.register_forward_hook(forget_examples, always_call=True)


def watched_arguments(model: nn.Module) -> tuple[BatchArgument, ...]:
    """In which of its arguments the model counts its examples; none where it does not."""
    arguments: tuple[BatchArgument, ...] = vars(model).get(EXAMPLES_ALONG, ())
    return arguments


def unwatch_examples(model: nn.Module) -> None:
    """Take `watch_examples` back; nothing to do where it was not called."""
    for hooks, flags, own in (
        (model._forward_pre_hooks, model._forward_pre_hooks_with_kwargs, tell_examples),
        (model._forward_hooks, model._forward_hooks_always_called, forget_examples),
    ):
        for key in [key for key, hook in hooks.items() if hook is own]:
            del hooks[key]
            flags.pop(key, None)
    vars(model).pop(EXAMPLES_ALONG, None)


def fold_of(layer: Any, rows: int) -> Fold | None:
    """How the examples lie in a dimension of so many rows, or None where each row counts as an example.

    Outside of the model's forward (a checkpoint's second pass) as at the last forward with so many rows.
    """
    settings: Settings = layer._settings
    if settings.rows <= 1:
        return None
    examples = _examples(layer, rows)
    if examples < 1 or examples == rows or rows % (examples * max(settings.run, 1)):
        return None
    return Fold(examples, settings.run)


def _examples(layer: Any, rows: int) -> int:
    """How many examples so many rows are; 0 or less where nothing tells."""
    told = examples_of_forward()
    if told:
        if not torch.compiler.is_compiling():
            remember_examples(layer, rows, told)
        return told
    rows_before, examples_before = last_examples(layer)
    return examples_before if rows_before == rows else 0
