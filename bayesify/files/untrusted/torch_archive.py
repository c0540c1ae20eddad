"""Where a torch file keeps its pickle and its storages, for both of torch's formats, and whether the two agree."""

from __future__ import annotations

import io
import pickletools
import re
import warnings
import zipfile
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from ...errors import FileRefusedError
from .file_kind import sniff
from .global_names import Name
from .pickle_listing import Listing, MalformedPickleError, listing

# Stands before an old-format note about a class's source code, and is called for the class.
NOTE = "bayesify.files.class_of_note"


@dataclass(frozen=True)
class Archive:
    """A torch file, opened as far as its listing.

    Attributes:
        path: the file.
        listing: what its pickle names.
        end: where the pickle ends in an old-format file.
        sizes: the bytes of each storage of a zipped file; None in an old-format file.
    """

    path: Path
    listing: Listing
    end: int
    sizes: Mapping[str, int] | None

    def check_readable(self) -> None:
        """Refuse what torch's weights_only reader cannot read, with what to do instead of torch's own words."""
        found = self.listing
        if found.strange:
            raise FileRefusedError(f"{self.path}: refers to data outside the file; save it again with torch.save")
        if found.unreadable:
            raise FileRefusedError(
                f"{self.path}: written with a pickle protocol (opcode {min(found.unreadable)}) that torch's safe "
                "reader doesn't know; save it again with plain torch.save(...), without pickle_protocol="
            )
        self._check_storages()

    def load(self, built: list[Any], *, meta: bool) -> Any:
        """What torch's weights_only reader makes of the file, with the (object, name) pairs of `built` beside its own.

        Raises:
            FileRefusedError: it cannot read the file.
        """
        try:
            with self.opened() as file, warnings.catch_warnings(), torch.serialization.safe_globals(built):
                warnings.simplefilter("ignore")
                return torch.load(file, map_location="meta" if meta else "cpu", weights_only=True)
        except Exception as error:
            raise FileRefusedError(f"{self.path}: {reason(error)}") from None

    def _check_storages(self) -> None:
        known: dict[Any, int] = {}
        for storage in self.listing.storages:
            key, size = _storage_size(self.path, storage)
            known[key] = max(size, known.get(key, 0))
        if self.sizes is None:
            if sum(known.values()) > self.path.stat().st_size - self.end:
                raise FileRefusedError(f"{self.path}: {SHORT}")
            return
        for key, size in known.items():
            if self.sizes.get(key, 0) != size:
                raise FileRefusedError(f"{self.path}: storage {key!r} should hold {size} bytes; {SHORT}")

    @contextmanager
    def opened(self) -> Any:
        """The file for torch.load: open, so that torch can't go by its name, and without old-format source notes.

        torch's weights_only reader stops at those notes, ("module", class, file, source), which stand where an old file
        first names a module class. Each is rewritten into a call that returns its class and ignores the source.
        """
        with self.path.open("rb") as file:
            yield _without_notes(file, self) if self.listing.sources else file


_CALL_NOTE = "c{}\n{}\n".format(*NOTE.rsplit(".", 1)).encode()
_FOREIGN = "as torch.save never writes; save it again with torch.save"
SHORT = "the file is cut off or damaged; fetch or save it again"


def open_archive(path: Path) -> Archive:
    """Open a torch file and list its pickle.

    Raises:
        FileRefusedError: it is another kind of file, or broken.
        UsageError: there is no such file.
    """
    found = sniff(path)
    if found.kind not in ("torch zip", "torch old"):
        raise FileRefusedError(f"{path}: {found.refusal or 'is a safetensors file, which holds no model'}")
    try:
        return _open_zip(path) if found.kind == "torch zip" else _open_old(path)
    except (MalformedPickleError, zipfile.BadZipFile, EOFError, OSError, KeyError, NotImplementedError, RuntimeError):
        raise FileRefusedError(f"{path}: {SHORT}") from None


def reason(error: Exception) -> str:
    """Why torch could not read a file, without torch's advice to read it unrestricted."""
    first = re.sub(r"\x1b\[\d*m", "", str(error)).strip().split("\n", 1)[0]
    if not first or "weights_only" in first or "Weights only" in first:
        first = "its pickle does what torch's safe reader refuses"
    return f"cannot be read ({first[:160]}); the file is damaged, or was written by other versions of its libraries"


def _open_zip(path: Path) -> Archive:
    with zipfile.ZipFile(path) as file:
        entries = file.infolist()
        names = [entry.filename for entry in entries]
        root = names[0].split("/", 1)[0] + "/"
        if len(set(names)) != len(names) or f"{root}data.pkl" not in names:
            raise FileRefusedError(f"{path}: holds entries twice or outside its folder, {_FOREIGN}")
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise FileRefusedError(f"{path}: holds compressed entries, {_FOREIGN}")
        if sum(entry.file_size for entry in entries) > path.stat().st_size:
            raise FileRefusedError(f"{path}: its entries claim more bytes than it has; {SHORT}")
        sizes = {entry.filename.removeprefix(f"{root}data/"): entry.file_size for entry in entries}
        return Archive(path, listing(file.read(f"{root}data.pkl")), 0, sizes)


def _open_old(path: Path) -> Archive:
    """An old-format file: pickles of a magic number, version, platform, the object, storage keys; then raw bytes."""
    with path.open("rb") as file:
        for _ in range(3):
            _skip(file)
        found = listing(file)
        return Archive(path, found, file.tell(), None)


def _skip(file: BinaryIO) -> None:
    try:
        for _ in pickletools.genops(file):
            pass
    except ValueError as error:
        raise MalformedPickleError(str(error)) from None


def _without_notes(file: BinaryIO, archive: Archive) -> BinaryIO:
    content = file.read()
    edits = [(at, _CALL_NOTE, 0) for at, _ in archive.listing.sources] + [
        (at, b"R", 1) for _, at in archive.listing.sources
    ]
    parts, done = [], 0
    for at, new, replaced in sorted(edits):
        parts += [content[done:at], new]
        done = at + replaced
    return io.BytesIO(b"".join([*parts, content[done:]]))


def _storage_size(path: Path, storage: tuple[Any, ...]) -> tuple[str, int]:
    broken = FileRefusedError(f"{path}: describes a tensor that cannot be; {SHORT}")
    if len(storage) not in (4, 5):
        raise broken
    kind, key, _, count = storage[:4]
    if not isinstance(kind, Name) or not isinstance(key, str) or not isinstance(count, int) or count < 0:
        raise broken
    return key, count * _item_size(kind, broken)


def _item_size(kind: Name, broken: FileRefusedError) -> int:
    if kind.qualname not in _ITEM_SIZES:
        raise broken
    return _ITEM_SIZES[kind.qualname]


_SIZED = {
    1: "Untyped Byte Char Bool QInt8 QUInt8 QUInt4x2 QUInt2x4",
    2: "Half BFloat16 Short",
    4: "Float Int QInt32",
    8: "Double Long ComplexFloat",
    16: "ComplexDouble",
}
_ITEM_SIZES = {f"{kind}Storage": size for size, kinds in _SIZED.items() for kind in kinds.split()}
