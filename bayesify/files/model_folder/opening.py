"""A model out of its folder: the plain network as its library builds it, and the posterior around it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...errors import FileRefusedError, UsageError
from ..fit_weights import Tell, fit
from ..model_factory import build_network
from ..model_file.description import entry_of
from ..model_file.read import OwnFile
from ..model_file.write import bytes_of
from ..read_weights import plain_weights
from ..untrusted.content import SHORT, opened
from ..untrusted.safetensors_file import read_header
from ..untrusted.storages import Fill
from ..weight_files import RECORD, SCALES
from . import of_diffusers, of_peft, of_timm, of_transformers
from .configuration import FILES, Configured, configured
from .record import Record, read_record


def open_folder(
    folder: Path, *, into: nn.Module | None = None, factory: str | Callable[..., nn.Module] | None = None,
    args: Mapping[str, Any] | None = None, meta: bool = False, tell: Tell = lambda note: None,
) -> nn.Module:  # fmt: skip
    """The model of a folder: plain, or converted where `save` wrote it so.

    Args:
        folder: the folder.
        into: the plain network, for the folder's weights; of an adapter's folder, its base network.
        factory, args: as `into`, for a network that code builds.
        meta: read no weights; the model's tensors are on the meta device.
        tell: called with what is done on the way.

    Raises:
        FileRefusedError: it holds no model, is damaged, or is not what its library or `save` writes.
    """
    record = read_record(folder) if (folder / RECORD).exists() else None
    network = into if factory is None else build_network(factory, args or {})
    network = plain_network(folder, network, meta=meta, tell=tell)
    return network if record is None else converted(folder, record, network, meta=meta)


def plain_network(folder: Path, given: nn.Module | None, *, meta: bool, tell: Tell) -> nn.Module:
    """The plain network of a folder, and around or into the one that is given.

    Raises:
        FileRefusedError: see `open_folder`.
    """
    found = None if given is not None and not (folder / FILES["peft"]).is_file() else configured(folder)
    if found is None:
        assert given is not None
        fit(given, plain_weights(folder, meta=meta), source=str(folder), tell=tell)
        return given
    if found.kind == "peft":
        return of_peft.network(found, given or _base(found, meta, tell), meta=meta, tell=tell)
    return _BUILDERS[found.kind](found, meta=meta, tell=tell)


def _base(adapter: Configured, meta: bool, tell: Tell) -> nn.Module:
    folder = of_peft.base_folder(adapter)
    if (folder / RECORD).exists() or (folder / FILES["peft"]).is_file():
        raise UsageError(f"{adapter.folder}: its base {folder} is no plain network; convert the adapters, not the base")
    return plain_network(folder, None, meta=meta, tell=tell)


def converted(folder: Path, record: Record, network: nn.Module, *, meta: bool) -> nn.Module:
    """The converted model, in place of the plain network.

    Raises:
        FileRefusedError: the network is another one, or its tensors or the record's are damaged.
    """
    storages = storages_of(network)
    with _apart(folder, record) as (sizes, fill_apart):
        def fill(key: str, buffer: memoryview) -> None:
            if key in sizes:
                fill_apart(key, buffer)
            else:
                buffer[:] = bytes_of(storages[key])

        keys = record.description.checksums
        known = {key: sizes[key] if key in sizes else _size(storages, key, folder) for key in keys}
        try:
            return OwnFile(record.description, known, fill, meta=meta).around(network)
        except FileRefusedError as error:
            raise FileRefusedError(f"{folder}: {error}") from None


def storages_of(network: nn.Module) -> dict[str, torch.UntypedStorage]:
    """The storages of a network's tensors, under every name of theirs."""
    tensors = [
        *network.named_parameters(remove_duplicate=False), *network.named_buffers(remove_duplicate=False)
    ]  # fmt: skip
    return {name: tensor.untyped_storage() for name, tensor in tensors}


def _size(storages: Mapping[str, torch.UntypedStorage], key: str, folder: Path) -> int:
    if key not in storages:
        raise FileRefusedError(f"{folder}: its plain network has no {key[:80]!r}, which the model has")
    return storages[key].nbytes()


@contextlib.contextmanager
def _apart(folder: Path, record: Record) -> Iterator[tuple[dict[str, int], Fill]]:
    """The tensors that lie apart: their sizes, and reading one."""
    with opened(folder / SCALES) as content:
        header = read_header(content)
        start = min((entry.start for entry in header.entries.values()), default=0)
        if {name: entry_of(entry, start) for name, entry in header.entries.items()} != record.apart:
            raise FileRefusedError(f"has other tensors than {RECORD} says; {SHORT}")
        entries = header.entries
        sizes = {name: entry.size for name, entry in entries.items()}
        yield sizes, lambda key, buffer: content.read_into(entries[key].start, buffer)


_BUILDERS: dict[str, Callable[..., nn.Module]] = {
    "timm": of_timm.network, "transformers": of_transformers.network, "diffusers": of_diffusers.network
}  # fmt: skip
