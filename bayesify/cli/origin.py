"""Where a converted file or folder comes from, as it says itself: versions, plan, checksum."""

from __future__ import annotations

import hashlib
from pathlib import Path

from ..files.model_file.description import Description, is_ours, read_description
from ..files.model_folder.record import read_record
from ..files.untrusted.content import Content, opened
from ..files.untrusted.file_kind import kind_of
from ..files.untrusted.safetensors_file import read_header
from ..files.weight_files import RECORD
from ..findings import Origin

_CHUNK = 1 << 20


def origin_of(path: str, command: str) -> Origin:
    """What a file, or a folder's record, says of itself; of what bayesify did not write, less."""
    said = _said(path)
    if said is None:
        return Origin(path, "", command=command)
    with opened(said) as content:
        checksum, description = _sha256(content), _description(said, content)
    if description is None:
        return Origin(path, checksum, command=command)
    return Origin(path, checksum, description.versions, description.plan, command)


def _said(path: str) -> Path | None:
    """The file that says it: of a folder its record."""
    place = Path(path)
    said = place / RECORD if place.is_dir() else place
    return said if said.is_file() else None


def _description(path: Path, content: Content) -> Description | None:
    if path.name == RECORD:
        return read_record(path.parent).description
    if kind_of(content).kind != "safetensors" or not is_ours(read_header(content)):
        return None
    return read_description(content)[1]


def _sha256(content: Content) -> str:
    digest = hashlib.sha256()
    for at in range(0, content.size, _CHUNK):
        digest.update(content.read(at, min(_CHUNK, content.size - at)))
    return digest.hexdigest()
