"""A model as the bytes of a file of ours: its description, then its tensors."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..untrusted.content import storage_buffer
from ..untrusted.safetensors_file import DTYPES
from .conversion import EXTRAS, conversion_of, kept_plan, tensors_of
from .description import Description, Factory, header_of, present_versions
from .live_nodes import nodes_of, storage_names
from .node_json import to_table


@dataclass(frozen=True)
class ModelFile:
    """A file of ours, before it is written: the bytes that come first, and the storages that follow."""

    header: bytes
    storages: Mapping[str, torch.UntypedStorage]

    def parts(self) -> Iterator[bytes | memoryview]:
        """The file's bytes, in order."""
        yield self.header
        for storage in self.storages.values():
            yield bytes_of(storage)


def described(model: nn.Module, *, factory: Factory | None, structure: bool) -> ModelFile:
    """The file of a model: arguments and errors are those of `description_of`."""
    description, storages = description_of(model, factory=factory, structure=structure)
    return ModelFile(header_of(description, forms_of(model, storages)), storages)


def description_of(
    model: nn.Module, *, factory: Factory | None, structure: bool
) -> tuple[Description, dict[str, torch.UntypedStorage]]:
    """What is to be written of a model: its description, and its storages by key.

    Args:
        model: the model.
        factory: the code that builds the plain network.
        structure: whether the model's own structure is written too.

    Raises:
        pickle.PicklingError, AttributeError, TypeError, RuntimeError, RecursionError: it holds what is not data.
    """
    live = nodes_of((model if structure else None, tensors_of(model), conversion_of(model)), storage_names(model))
    table, root = to_table(live.root)
    structure_value, tensors_value, conversion_value = table[root[0]]["tuple"]
    description = Description(
        nodes=table,
        structure=structure_value,
        tensors=tensors_value,
        conversion=conversion_value,
        checksums={key: zlib.crc32(bytes_of(memory)) for key, memory in live.storages.items()},
        factory=factory,
        versions=present_versions(),
        plan=kept_plan(model),
        extras=dict(vars(model).get(EXTRAS, {})),
    )
    return description, live.storages


def forms_of(
    model: nn.Module, storages: Mapping[str, torch.UntypedStorage]
) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """The dtype and shape under which each storage is listed: its tensor's, where one covers it; else bytes."""
    tensors, forms = tensors_of(model), {}
    for key, memory in storages.items():
        tensor = tensors.get(key)
        whole = tensor is not None and tensor.is_contiguous() and tensor.nbytes == memory.nbytes()
        known = whole and tensor is not None and tensor.dtype in DTYPES.values()
        forms[key] = (tensor.dtype, tuple(tensor.shape)) if known and tensor is not None else _as_bytes(memory)
    return forms


def _as_bytes(memory: torch.UntypedStorage) -> tuple[torch.dtype, tuple[int, ...]]:
    return torch.uint8, (memory.nbytes(),)


def bytes_of(storage: Any) -> memoryview:
    """A storage's bytes, on the CPU."""
    return storage_buffer(storage.cpu())
