"""A live model as inert nodes: what pickling it would say, read by the reader that reads files, and its storages."""

from __future__ import annotations

import io
import pickle
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..untrusted.content import Content
from ..untrusted.pickle_reader import read_pickle


@dataclass(frozen=True)
class LiveNodes:
    """A value as nodes, and the storages that they name, by key."""

    root: Any
    storages: dict[str, torch.UntypedStorage]


def nodes_of(value: Any, names: dict[int, str]) -> LiveNodes:
    """The nodes of a value.

    Args:
        value: a model, or anything that pickle takes.
        names: what storages are called, by the address of their memory; others are numbered.

    Raises:
        pickle.PicklingError, AttributeError, TypeError, RuntimeError, RecursionError: it cannot be pickled.
    """
    buffer = io.BytesIO()
    pickler = _Pickler(buffer, names)
    pickler.dump(value)
    pickle = read_pickle(Content(buffer, 0, buffer.tell()))
    return LiveNodes(pickle.root, pickler.storages)


def storage_names(model: nn.Module) -> dict[int, str]:
    """The first name of a Parameter or buffer over each storage."""
    names: dict[int, str] = {}
    for name, tensor in named_tensors(model):
        if not torch.nn.parameter.is_lazy(tensor) and not tensor.is_meta and tensor.layout == torch.strided:
            names.setdefault(tensor.untyped_storage()._cdata, name)
    return names


def named_tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Every Parameter and buffer under every one of its names, those that are not saved with a state_dict too."""
    parameters = model.named_parameters(remove_duplicate=False)
    return [*parameters, *model.named_buffers(remove_duplicate=False)]


class _Pickler(pickle.Pickler):
    """Writes storages as torch.save does: outside of the pickle, by a key."""

    def __init__(self, file: io.BytesIO, names: dict[int, str]) -> None:
        super().__init__(file, protocol=2)
        self.storages: dict[str, torch.UntypedStorage] = {}
        self._names = names
        self._keys: dict[int, str] = {}

    def persistent_id(self, obj: Any) -> Any:
        """The identifier of a storage; None for everything else."""
        if not isinstance(obj, torch.storage.TypedStorage | torch.UntypedStorage):
            return None
        typed: Any = obj if isinstance(obj, torch.storage.TypedStorage) else None
        memory: Any = obj if typed is None else typed._untyped_storage
        kind = torch.UntypedStorage if typed is None else getattr(torch, typed._pickle_storage_type())
        key = self._keys.get(memory._cdata)
        if key is None:
            key = self._names.get(memory._cdata, f"{_NUMBERED}{len(self._keys)}")
            self._keys[memory._cdata] = key
            self.storages[key] = memory
        return ("storage", kind, key, "cpu", memory.nbytes() if typed is None else typed._size())


_NUMBERED = "attribute tensor "
