"""What makes a folder a converted model: bayesify.json, and the tensors that the plain network has not."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ...errors import FileRefusedError
from ..json_file import parse_json, read_bytes
from ..model_file.description import FORMAT, Description, parsed
from ..untrusted.content import SHORT
from ..untrusted.safetensors_file import DTYPES
from ..weight_files import RECORD

_DIGEST = "sha256"


@dataclass(frozen=True)
class Record:
    """The record of a folder.

    Attributes:
        description: as in a single file, without the structure: that is what the folder's configuration says.
        apart: of each tensor in `bayesify.safetensors`, its dtype, shape and place; the plain network has all others.
        files: the SHA-256 of each file that says how the plain network is built.
    """

    description: Description
    apart: dict[str, Any]
    files: dict[str, str]


def record_text(record: Record) -> str:
    """The JSON of a record: what people read first, and a digest of all of it."""
    said = asdict(record.description)
    plan = said["plan"] or {}
    first = {"format": FORMAT, "versions": said["versions"], "policy": plan.get("policy"), "plan": said["plan"]}
    whole = {**first, "files": record.files, "apart": record.apart, **said}
    return json.dumps({**whole, _DIGEST: _digest(whole)}, indent=1) + "\n"


def read_record(folder: Path) -> Record:
    """The record of a folder, held to its digest, and the folder's configuration to the record.

    Raises:
        FileRefusedError: it is damaged or of a later format, or a file that it names is another one now.
    """
    path = folder / RECORD
    whole = parse_json(read_bytes(path), path)
    if whole.get("format") != FORMAT:
        raise FileRefusedError(f"{path}: is in format {whole.get('format')} of bayesify's; install a newer bayesify")
    if whole.pop(_DIGEST, None) != _digest(whole):
        raise FileRefusedError(f"{path}: differs from its checksum; {SHORT}")
    files, apart = whole.get("files"), whole.get("apart")
    beside = isinstance(files, dict) and all(name == os.path.basename(name) for name in files)
    if not isinstance(files, dict) or not beside or not isinstance(apart, dict):
        raise FileRefusedError(f"{path}: its description is damaged; {SHORT}")
    for name, digest in files.items():
        if file_digest(folder / name) != digest:
            raise FileRefusedError(
                f"{folder / name}: is not the file that the model was saved with; put that back, or convert again"
            )
    return Record(parsed(json.dumps(whole)), apart, files)


def file_digest(path: Path) -> str:
    """The SHA-256 of a file's bytes."""
    return hashlib.sha256(read_bytes(path)).hexdigest()


def placed(forms: Mapping[str, tuple[torch.dtype, tuple[int, ...]]], names: Iterable[str]) -> dict[str, Any]:
    """The entries of a safetensors header for these tensors, one after the other."""
    dtypes, entries, at = {dtype: name for name, dtype in DTYPES.items()}, {}, 0
    for name in names:
        dtype, shape = forms[name]
        end = at + dtype.itemsize * int(torch.Size(shape).numel())
        entries[name] = {"dtype": dtypes[dtype], "shape": list(shape), "data_offsets": [at, end]}
        at = end
    return entries


def _digest(whole: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()
