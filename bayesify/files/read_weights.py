"""Weights as people have them: a state_dict from safetensors or a pickle, alone or inside a training checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import FileRefusedError
from .checkpoint import pick
from .prefixes import strip
from .untrusted.file_kind import sniff
from .untrusted.global_names import dotted
from .untrusted.placeholders import dangerous, placeholders
from .untrusted.torch_archive import open_archive


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

    Objects of foreign classes are read as inert placeholders and never imported; `weights_only=True` always.

    Args:
        path: safetensors, or a file of torch.save in either format: a state_dict, a checkpoint with one, or a model.
        key: the dotted path of the state_dict inside a checkpoint; found by itself where it is clear.
        meta: read shapes and dtypes only; the tensors are on the meta device.

    Raises:
        FileRefusedError: broken, malicious, without weights, or with several candidates and no `key`.
        UsageError: there is no such file, or nothing stands under `key`.
    """
    path = Path(path)
    content = read_content(path, meta)
    found, place = pick(path, content, key)
    if not meta and any(isinstance(value, Tensor) and value.is_meta for value in found.values()):
        raise FileRefusedError(f"{path}: was saved from the meta device and holds no data; save the trained model")
    return _cleaned(found, place)


def read_content(path: Path, meta: bool) -> Any:
    """All that stands in a file of safetensors or torch.save, as data."""
    return _read_safetensors(path, meta) if sniff(path).kind == "safetensors" else _read_pickle(path, meta)


def _read_safetensors(path: Path, meta: bool) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys()
            if not meta:
                return {name: file.get_tensor(name) for name in names}
            slices = {name: file.get_slice(name) for name in names}
            return {name: _on_meta(part.get_shape(), part.get_dtype()) for name, part in slices.items()}
    except (SafetensorError, OSError, KeyError) as error:
        raise FileRefusedError(f"{path}: is a damaged safetensors file ({error}); fetch or save it again") from None


def _on_meta(shape: list[int], dtype: str) -> Tensor:
    return torch.empty(shape, dtype=_SAFETENSORS_DTYPES[dtype], device="meta")


_SAFETENSORS_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "C64": torch.complex64,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip


def _read_pickle(path: Path, meta: bool) -> Any:
    archive = open_archive(path)
    bad = dangerous(archive.listing)
    if bad:
        raise FileRefusedError(
            f"{path}: names {dotted(bad[:10])}, which weights have no need of and which could run code when opened; "
            "refused. Ask its author for a safetensors file"
        )
    archive.check_readable()
    return archive.load(placeholders(archive.listing), meta=meta)


def _cleaned(found: Mapping[str, Any], place: str) -> Weights:
    """Without what is no tensor, and without the prefixes that wrappers put before every name."""
    kept = {name: value for name, value in found.items() if isinstance(value, Tensor) or name.endswith("_extra_state")}
    notes = [f"took the weights under {place!r}"] if place else []
    dropped = sorted(set(map(str, found)) - set(kept))
    if dropped:
        notes.append(f"left out {len(dropped)} entries that are no tensors: {', '.join(dropped[:5])}")
    kept, stripped = strip(kept)
    if stripped:
        notes.append(f"stripped {' and '.join(repr(prefix) for prefix in stripped)} from the names")
    return Weights(kept, place, stripped, tuple(notes))
