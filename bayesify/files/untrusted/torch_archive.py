"""Where a file of torch.save keeps its pickle and its storages, in both of torch's formats."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ...errors import FileRefusedError
from .byte_stream import MalformedPickleError
from .content import SHORT, Content
from .file_kind import MAGIC_NUMBER
from .nodes import Dict
from .pickle_reader import Pickle, read_pickle
from .storages import Storages, described
from .zip_directory import ZipDirectory

_FOREIGN = "as torch.save never writes; save it again with torch.save"


@dataclass(frozen=True)
class Archive:
    """A file of torch.save: its pickle as data, and its storages."""

    pickle: Pickle
    storages: Storages


def open_archive(content: Content, kind: str, *, meta: bool) -> Archive:
    """A file of torch.save of the kind that `file_kind` tells.

    Raises:
        FileRefusedError: it is damaged, or not as torch writes it.
    """
    return open_zip(content, meta=meta) if kind == "torch zip" else open_old(content, meta=meta)


def open_zip(content: Content, *, meta: bool) -> Archive:
    """A file in torch's present format. Every member is held to its checksum, except storages under `meta`.

    Raises:
        FileRefusedError: it is damaged, or not as torch writes it.
    """
    directory = ZipDirectory(content)
    root = next(iter(directory.members), "").partition("/")[0] + "/"
    if not all(name.startswith(root) for name in directory.members) or f"{root}data.pkl" not in directory.members:
        raise FileRefusedError(f"holds entries outside its folder, {_FOREIGN}")
    member = directory.stored(f"{root}data.pkl")
    directory.verify(member.name)
    pickle = _read(content.part(member.start, member.size))
    folder, order = f"{root}data/", f"{root}byteorder"
    sizes = {
        name.removeprefix(folder): member.size for name, member in directory.members.items() if name.startswith(folder)
    }
    if not meta:
        used = {f"{folder}{described(node)[0]}" for node in pickle.storages}
        for name in directory.members.keys() - used:
            directory.verify(name)
    written = directory.read(order).decode("ascii", "replace").strip() if order in directory.members else sys.byteorder
    if written not in ("little", "big"):
        raise FileRefusedError(f"is in the byte order {written[:20]!r}; {SHORT}")
    fill = lambda key, buffer: directory.read_into(f"{folder}{key}", buffer)  # noqa: E731
    return Archive(pickle, Storages(sizes, fill, meta=meta, order=written))


def open_old(content: Content, *, meta: bool) -> Archive:
    """A file in torch's old format: five pickles, of which the fourth is the object, then the storages.

    The others are a magic number, a version, the platform and the storages' keys. The format has no checksums.

    Raises:
        FileRefusedError: it is damaged, or not as torch writes it.
    """
    at, head = 0, []
    for _ in range(3):
        part = _read(content, at)
        head.append(part.root)
        at = part.end
    if head[0] != MAGIC_NUMBER or head[1] != 1001 or not isinstance(head[2], Dict):
        raise FileRefusedError(f"is not in the version of torch's old format that this program knows; {SHORT}")
    pickle = _read(content, at)
    keys = _read(content, pickle.end)
    places = dict(_places(content, keys.end, keys.root, pickle))
    big = any(key == "little_endian" and value is not True for key, value in head[2].pairs if isinstance(key, str))
    fill = lambda key, buffer: content.read_into(places[key][0], buffer)  # noqa: E731
    sizes = {key: size for key, (_, size) in places.items()}
    return Archive(pickle, Storages(sizes, fill, meta=meta, order="big" if big else "little"))


def _places(content: Content, at: int, keys: Any, pickle: Pickle) -> Iterator[tuple[str, tuple[int, int]]]:
    """(key, (place, size)) of each storage: exactly those that the object refers to, one after the other to the end."""
    widths: dict[str, tuple[int, int]] = {}
    for node in pickle.storages:
        key, count, dtype = described(node)
        described_as = (count, dtype.itemsize if dtype else 1)
        if widths.setdefault(key, described_as) != described_as:
            raise FileRefusedError(f"describes one storage in two ways; {SHORT}")
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or sorted(keys) != sorted(widths):
        raise FileRefusedError(f"lists other storages than it uses; {SHORT}")
    for key in keys:
        count, width = widths[key]
        if int.from_bytes(content.read(at, 8), "little") != count:
            raise FileRefusedError(f"storage {key[:40]!r} is not of the size that its tensors have; {SHORT}")
        content.part(at + 8, count * width)
        yield key, (at + 8, count * width)
        at += 8 + count * width
    if at != content.size:
        raise FileRefusedError(f"goes on after its last tensor, {_FOREIGN}")


def _read(content: Content, at: int = 0) -> Pickle:
    try:
        return read_pickle(content, at)
    except MalformedPickleError:
        raise FileRefusedError(SHORT) from None
