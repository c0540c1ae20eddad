"""What the builders of networks share: importing a library, and the bounds of what a configuration may ask for."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ...errors import FileRefusedError, UsageError
from ..read_weights import Weights

_SPARE = 256 << 20  # bytes of buffers that a network computes for itself: positions, masks


def library(name: str, folder: Path) -> Any:
    """The library.

    Raises:
        UsageError: it is not installed, or does not import.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        hint = f"pip install {name}" if getattr(error, "name", None) == name else f"importing {name} fails: {error}"
        raise UsageError(f"{folder}: is a folder of {name}, which opens it: {hint}") from error


def refuse_larger(network: nn.Module, weights: Weights, folder: Path) -> None:
    """Refuse a network that is much larger than its weights: a small file must not take all memory.

    Raises:
        FileRefusedError: it is.
    """
    needed = sum(tensor.nbytes for tensor in {id(t): t for t in (*network.parameters(), *network.buffers())}.values())
    given = sum(value.nbytes for value in weights.state_dict.values() if isinstance(value, Tensor))
    if needed > 8 * given + _SPARE:
        raise FileRefusedError(
            f"{folder}: its configuration describes a network of {needed >> 20} MiB, and its weights have "
            f"{given >> 20} MiB: they do not belong together"
        )
