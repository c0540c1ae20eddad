"""Where a converted file comes from, as it says itself: versions, plan, checksum."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from typing import Any

from ..files.model_file.description import Description, is_ours, read_description
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
        checksum, description = _sha256(content), _description(content)
    if description is None:
        return Origin(path, checksum, command=command)
    return Origin(path, checksum, description.versions, description.plan, command)


def plan_of(path: str) -> Mapping[str, Any] | None:
    """The plan that a file was converted by, where it says so; its tensors are not read."""
    if not os.path.isfile(path):
        return None
    with opened(path) as content:
        description = _description(content)
    return None if description is None else description.plan


def _description(content: Content) -> Description | None:
    if kind_of(content).kind != "safetensors" or not is_ours(read_header(content)):
        return None
    return read_description(content)[1]


def _sha256(content: Content) -> str:
    digest = hashlib.sha256()
    for at in range(0, content.size, _CHUNK):
        digest.update(content.read(at, min(_CHUNK, content.size - at)))
    return digest.hexdigest()
