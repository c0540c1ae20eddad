"""What a call answers that needs the model and was given something else."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping

from torch import nn

from ..errors import UsageError


def refuse_other_than_model(given: object) -> None:
    """Raise where it is not a module.

    Raises:
        UsageError: what it seems to be, and what to pass.
    """
    if isinstance(given, nn.Module):
        return
    needed = "and a model (torch.nn.Module) is needed"
    if isinstance(given, str | os.PathLike):
        raise UsageError(f"the path {os.fspath(given)!r} was given, {needed}: bayesify.load(path) opens one")
    if isinstance(given, Mapping):
        raise UsageError(f"a dict was given, {needed}: a state_dict is loaded into one first")
    if isinstance(given, type) and issubclass(given, nn.Module):
        raise UsageError(f"the class {given.__name__} was given, {needed}: {given.__name__}(...)")
    if isinstance(given, Iterable):
        raise UsageError(f"{type(given).__name__} was given, {needed}: pass model, and not model.parameters()")
    raise UsageError(f"{given!r:.80} was given, {needed}")
