"""The hooks that bayesify puts on modules, beside those of `watched_forwards`. Saved files name them."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn

from .batch_arguments import examples_in
from .replaced_layers import SUSPECTED, ledgers, refuse_if_suspected
from .switches import forget_examples_of, tell_examples_of

EXAMPLES_ALONG = "_examples_along"  # on a model: which of its own arguments hold the examples


def mark_reached(module: Any, args: Any = None, output: Any = None) -> None:
    """The ledger's forward hook: marks the layer as reached. It keeps no tensor.

    Raises:
        StalePosteriorError: another layer of the model was replaced after conversion, by one without a posterior.
    """
    if SUSPECTED:
        refuse_if_suspected(module)
    if torch.compiler.is_compiling():
        module._reached = True
    elif not (own := vars(module))["_reached"]:
        own["_reached"] = True  # at a fifth of the cost
        from .watched_forwards import notice_first_forward  # which stands on layers, and so on this file

        notice_first_forward(module, ledgers())


def tell_examples(model: nn.Module, args: Any, kwargs: Any) -> None:
    """The forward pre-hook of a model that has folding layers."""
    examples = examples_in(args, kwargs, getattr(model, EXAMPLES_ALONG))
    if not examples and not torch.compiler.is_compiling():
        warnings.warn(_UNTOLD, stacklevel=2)
    tell_examples_of(examples or -1)


def forget_examples(model: nn.Module, args: Any, output: Any) -> None:
    """The forward hook of a model that has folding layers: calls after it are not of this batch."""
    forget_examples_of()


def keep_unfused(module: nn.Module, args: Any) -> None:
    """A forward pre-hook that does nothing: with any hook on it, torch's encoder layer calls its layers one by one."""


_UNTOLD = (
    "this call has no argument like those of example_inputs that hold the batch: where others are folded into it, each "
    "row of a layer counts as an example; convert with example_inputs as the model is called"
)
