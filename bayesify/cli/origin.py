"""Where a converted file comes from, as it says itself: versions, plan, checksum."""

from __future__ import annotations

import hashlib
import os

from ..files.model_file.description import is_ours, read_description
from ..files.untrusted.content import Content, opened
from ..files.untrusted.file_kind import kind_of
from ..files.untrusted.safetensors_file import read_header
from ..findings import Origin

_CHUNK = 1 << 20


def origin_of(path: str, command: str) -> Origin:
    """What a file says of itself; of one that bayesify did not write, and of a folder, less."""
    if not os.path.isfile(path):
        return Origin(path, "", command=command)
    with opened(path) as content:
        checksum = _sha256(content)
        if kind_of(content).kind != "safetensors" or not is_ours(read_header(content)):
            return Origin(path, checksum, command=command)
        _, description = read_description(content)
    return Origin(path, checksum, description.versions, description.plan, command)


def _sha256(content: Content) -> str:
    digest = hashlib.sha256()
    for at in range(0, content.size, _CHUNK):
        digest.update(content.read(at, min(_CHUNK, content.size - at)))
    return digest.hexdigest()
