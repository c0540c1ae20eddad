"""Small JSON files that nobody vouches for: a model's configuration, an index of shards."""

from __future__ import annotations

import json
from os import PathLike
from typing import Any

from ..errors import FileRefusedError
from .untrusted.content import SHORT, opened

_LARGEST = 64 << 20  # an index of a hundred thousand tensors has some megabytes


def read_json(path: str | PathLike[str]) -> dict[str, Any]:
    """The object that the file holds.

    Raises:
        UsageError: there is no such file, or it may not be read.
        FileRefusedError: it is not JSON, not an object, has a key twice, or is larger than such files are.
    """
    return parse_json(read_bytes(path), path)


def read_bytes(path: str | PathLike[str]) -> bytes:
    """The bytes of a small file.

    Raises:
        UsageError, FileRefusedError: see `read_json`.
    """
    with opened(path) as content:
        if content.size > _LARGEST:
            raise FileRefusedError(f"has {content.size >> 20} MiB, more than a file of this kind needs")
        return content.read(0, content.size)


def parse_json(text: bytes, path: str | PathLike[str]) -> dict[str, Any]:
    """The object that the bytes of a file say.

    Raises:
        FileRefusedError: see `read_json`.
    """
    try:
        value = json.loads(text, object_pairs_hook=_once)
    except (ValueError, RecursionError):
        raise FileRefusedError(f"{path}: is not JSON; {SHORT}") from None
    if not isinstance(value, dict):
        raise FileRefusedError(f"{path}: holds a {type(value).__name__} and not an object of JSON; {SHORT}")
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a key twice")
    return members
