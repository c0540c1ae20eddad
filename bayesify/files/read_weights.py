"""Weights as people have them: a state_dict from safetensors or a pickle, alone or inside a training checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import FileRefusedError
from .checkpoint import pick
from .model_file.description import is_ours
from .model_file.read import OwnFile
from .prefixes import strip
from .untrusted.content import SHORT, Content, opened
from .untrusted.file_kind import kind_of
from .untrusted.global_names import dotted
from .untrusted.node_limits import refuse_unfolding
from .untrusted.placeholders import WeightsBuilder, dangerous
from .untrusted.safetensors_file import read_header, read_tensors
from .untrusted.torch_archive import Archive, open_archive
from .weight_files import RECORD, WeightFiles, is_index, shards_of, weights_in_folder
from .weight_warnings import warn_of_no_checksums


@dataclass(frozen=True)
class Weights:
    """A state_dict out of a file.

    Attributes:
        state_dict: name -> tensor, prefixes of wrappers stripped.
        key: where in the file it stood, as a dotted path; "" at the top.
        stripped: wrappers' prefixes that were stripped: `module.` (DataParallel, DDP), `_orig_mod.` (torch.compile).
        notes: what was done, for the report, one sentence each.
    """

    state_dict: Mapping[str, Any]
    key: str = ""
    stripped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def read_weights(path: str | PathLike[str], *, key: str | None = None, meta: bool = False) -> Weights:
    """Read a state_dict, whatever the file's name and whatever stands beside the weights.

    Objects of foreign classes are read as inert placeholders and never imported. Warns of a file without checksums.

    Args:
        path: safetensors, or a file of torch.save in either format: a state_dict, a checkpoint with one, or a model;
            an index of shards (`model.safetensors.index.json`), or a folder that holds weights.
        key: the dotted path of the state_dict inside a checkpoint; found by itself where it is clear.
        meta: read shapes and dtypes only; the tensors are on the meta device.

    Raises:
        FileRefusedError: broken, malicious, without weights, or with several candidates and no `key`.
        UsageError: there is no such file, or nothing stands under `key`.
    """
    if (Path(path) / RECORD).exists():
        raise FileRefusedError(f"{path}: is a converted model, and more than weights: open it itself")
    files = _files(Path(path))
    if files is None:
        with opened(path) as content:
            read = weights_in(content, key=key, meta=meta)
            warn_of_no_checksums(content, path, meta=meta)
            return read
    return _of_files(files, path, key, meta)


def plain_weights(folder: Path, *, meta: bool = False) -> Weights:
    """The weights in a folder of any library, those of the plain network where it holds a converted one.

    Raises:
        FileRefusedError: see `read_weights`.
    """
    return _of_files(weights_in_folder(folder), folder, None, meta)


def _of_files(files: WeightFiles, path: str | PathLike[str], key: str | None, meta: bool) -> Weights:
    try:
        read = _weights(_joined(files, meta), key, meta)
    except FileRefusedError as error:
        raise FileRefusedError(_of(path, error)) from None
    return replace(read, notes=(files.note, *read.notes))


def _files(path: Path) -> WeightFiles | None:
    """The files of a folder or an index; None for one that holds the weights itself."""
    if path.is_dir():
        return weights_in_folder(path)
    return shards_of(path) if is_index(path) else None


def _joined(files: WeightFiles, meta: bool) -> Any:
    """The values of all files by name: each file holds exactly what the index says."""
    joined: dict[str, Any] = {}
    for path, names in files.names.items():
        with opened(path) as content:
            values = values_in(content, meta=meta)
            if names is None:
                return values
            if not isinstance(values, Mapping) or set(values) != names:
                raise FileRefusedError(f"holds other tensors than the index says; {SHORT}")
            joined |= values
    return joined


def _of(path: str | PathLike[str], error: FileRefusedError) -> str:
    text = str(error)
    return text if text.startswith(str(path)) else f"{path}: {text}"


def weights_in(content: Content, *, key: str | None = None, meta: bool = False) -> Weights:
    """As `read_weights`, out of a file that is open."""
    return _weights(values_in(content, meta=meta), key, meta)


def weights_of(archive: Archive) -> Weights:
    """As `read_weights` under `meta`, out of a file of torch.save that was read already."""
    return _weights(_values(archive), None, meta=True)


def _weights(values: Any, key: str | None, meta: bool) -> Weights:
    try:
        picked, place = pick(values, key)
    except RecursionError:
        raise FileRefusedError(_TOO_DEEP) from None
    if not meta and any(isinstance(value, Tensor) and value.is_meta for value in picked.values()):
        raise FileRefusedError("was saved from the meta device and holds no data; save the trained model")
    return _cleaned(picked, place)


def read_content(path: str | PathLike[str], *, meta: bool = False) -> Any:
    """All that stands in a file of safetensors or torch.save, as data."""
    with opened(path) as content:
        return values_in(content, meta=meta)


def values_in(content: Content, *, meta: bool) -> Any:
    """As `read_content`, out of a file that is open."""
    kind = kind_of(content)
    if kind.kind == "safetensors":
        header = read_header(content)
        if is_ours(header):
            return OwnFile.in_content(content, meta=meta).tensors()
        return read_tensors(content, header, meta=meta)
    if kind.refusal:
        raise FileRefusedError(kind.refusal)
    return _values(open_archive(content, kind.kind, meta=meta))


def _values(archive: Archive) -> Any:
    bad = dangerous(archive.pickle)
    if bad:
        raise FileRefusedError(
            f"names {dotted(bad[:10])}, which weights have no need of and which could run code when opened; "
            "refused. Ask its author for a safetensors file"
        )
    refuse_unfolding(archive.pickle.root)
    try:
        return WeightsBuilder(archive.storages).value(archive.pickle.root)
    except RecursionError:
        raise FileRefusedError(_TOO_DEEP) from None


_TOO_DEEP = f"holds objects inside of objects, deeper than any checkpoint; {SHORT}"


def _cleaned(picked: Mapping[str, Any], place: str) -> Weights:
    """Without entries that are not tensors, and without the prefixes that wrappers put before every name."""
    kept = {name: value for name, value in picked.items() if isinstance(value, Tensor) or name.endswith("_extra_state")}
    notes = [f"took the weights under {place!r}"] if place else []
    dropped = sorted(set(map(str, picked)) - set(kept))
    if dropped:
        notes.append(f"left out {len(dropped)} entries that are not tensors: {', '.join(dropped[:5])}")
    kept, stripped = strip(kept)
    if stripped:
        notes.append(f"stripped {' and '.join(repr(prefix) for prefix in stripped)} from the names")
    return Weights(kept, place, stripped, tuple(notes))
