"""What the builders of networks share: importing a library, and the bounds of what a configuration may ask for."""

from __future__ import annotations

import contextlib
import importlib
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as registration

from ...errors import FileRefusedError, UsageError
from ...escaping import first_line
from ..fit_weights import Tell, fit
from ..read_weights import plain_weights
from .configuration import Configured

_SPARE = 256 << 20  # bytes of buffers that a network computes for itself: positions, masks
_FREE = 1 << 20  # what any number may be
_FREE_PLACES = 1 << 24  # of positions, which many networks have without a table of them
_PARTS_PER_TENSOR, _FREE_PARTS = 100, 20_000  # modules, Parameters and buffers


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


def filled(given: Configured, what: str, make: Callable[[], nn.Module], *, meta: bool, tell: Tell) -> nn.Module:
    """The network that `make` builds, in eval mode, with the folder's weights.

    Args:
        given: the folder.
        what: what the folder should describe: "model of timm".
        make: builds it from the configuration.
        meta: leave it on the meta device, without weights.
        tell: called with what is done on the way.

    Raises:
        FileRefusedError: it cannot be built, or is another one than the weights'.
    """
    def made() -> nn.Module:
        try:
            return make().eval()
        except FileRefusedError:
            raise
        except Exception as error:
            raise FileRefusedError(f"{given.folder}: describes no {what}: {first_line(error)}") from error

    extent = Extent.of(given.folder)
    extent.refuse_numbers(given.config)
    sketch = extent.sketch(made)
    if meta:
        return sketch
    extent.refuse_larger(sketch)
    weights, model = plain_weights(given.folder), made()
    fit(model, weights, source=str(given.folder), tell=tell)
    return model


@dataclass(frozen=True)
class Extent:
    """How much a folder's weights are: what its configuration asks for must not be much more.

    Attributes:
        folder: the folder.
        tensors: how many tensors there are.
        elements: how many numbers are in them.
        size: the bytes of those.
    """

    folder: Path
    tensors: int = 0
    elements: int = 0
    size: int = 0

    @classmethod
    def of(cls, folder: Path) -> Extent:
        """The extent of a folder's weights, without reading them; nothing where there are none to be read."""
        try:
            values = plain_weights(folder, meta=True).state_dict.values()
        except FileRefusedError:
            return cls(folder)
        tensors = [value for value in values if isinstance(value, Tensor)]
        elements, size = sum(tensor.numel() for tensor in tensors), sum(tensor.nbytes for tensor in tensors)
        return cls(folder, len(tensors), elements, size)

    def refuse_numbers(self, config: Any, name: str = "") -> None:
        """Refuse a configuration with numbers that no network of these weights has: a loop would not end.

        Raises:
            FileRefusedError: it has one.
        """
        if isinstance(config, dict):
            for key, value in config.items():
                self.refuse_numbers(value, str(key))
        elif isinstance(config, list):
            for value in config:
                self.refuse_numbers(value, name)
        elif isinstance(config, int) and abs(config) > self.elements + _free(name):
            raise self._apart(f"says `{name[:80]}`: {str(config)[:40]}")

    def sketch(self, make: Callable[[], nn.Module]) -> nn.Module:
        """A network on the meta device, so that what it asks for is known before memory is taken.

        Raises:
            FileRefusedError: it is made of far more parts than there are weights, which is told while it is made.
        """
        thread, parts = threading.get_ident(), 0

        def count(*_: Any) -> None:
            nonlocal parts
            parts += threading.get_ident() == thread
            if parts > _PARTS_PER_TENSOR * self.tensors + _FREE_PARTS:
                raise self._apart("describes a network of endless parts")

        with contextlib.ExitStack() as stack:
            for register in _REGISTERED:
                stack.callback(register(count).remove)
            with torch.device("meta"):
                return make()

    def refuse_larger(self, network: nn.Module) -> None:
        """Refuse a network that is much larger than its weights: a small file must not take all memory.

        Raises:
            FileRefusedError: it is.
        """
        tensors = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
        needed = sum(tensor.nbytes for tensor in tensors.values())
        if needed > 8 * self.size + _SPARE:
            raise self._apart(f"describes a network of {needed >> 20} MiB")

    def _apart(self, what: str) -> FileRefusedError:
        return FileRefusedError(
            f"{self.folder}: its configuration {what}, and its weights have {self.elements:,} numbers: they do not "
            "belong together"
        )


def _free(name: str) -> int:
    """What a number of this name may be, whatever the weights."""
    if "theta" in name:  # of rotary positions: no size
        return 1 << 62
    return _FREE_PLACES if re.search("position|length|context|window|seq", name) else _FREE


_REGISTERED: Any = (
    registration.register_module_module_registration_hook,
    registration.register_module_parameter_registration_hook,
    registration.register_module_buffer_registration_hook,
)
