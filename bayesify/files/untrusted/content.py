"""The bytes of a file that nobody vouches for: opened once, read from that one descriptor, never again by its name."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO

from ...errors import FileRefusedError, UsageError

NO_ALLOW = "refused, and no --allow lifts this"
SHORT = "the file is cut off or damaged; fetch or save it again"


class Content:
    """A stretch of bytes of one open file (or of memory): its `size`, and reading at a place in it."""

    def __init__(self, file: BinaryIO, start: int, size: int) -> None:
        self._file = file
        self._start = start
        self.size = size

    def read(self, at: int, size: int) -> bytes:
        """`size` bytes from `at`.

        Raises:
            FileRefusedError: it has fewer.
        """
        self._seek(at, size)
        read = self._file.read(size)
        if len(read) != size:
            raise FileRefusedError(SHORT)
        return read

    def read_into(self, at: int, buffer: memoryview) -> None:
        """Fill a buffer with the bytes from `at`.

        Raises:
            FileRefusedError: there are fewer.
        """
        self._seek(at, len(buffer))
        filled = 0
        while filled < len(buffer):
            count: int = self._file.readinto(buffer[filled:])  # type: ignore[attr-defined]
            if not count:
                raise FileRefusedError(SHORT)
            filled += count

    def part(self, at: int, size: int) -> Content:
        """A stretch of this stretch.

        Raises:
            FileRefusedError: it reaches beyond the end.
        """
        self._check(at, size)
        return Content(self._file, self._start + at, size)

    def _seek(self, at: int, size: int) -> None:
        self._check(at, size)
        self._file.seek(self._start + at)

    def _check(self, at: int, size: int) -> None:
        if at < 0 or size < 0 or at + size > self.size:
            raise FileRefusedError(SHORT)


@contextlib.contextmanager
def opened(path: str | PathLike[str]) -> Iterator[Content]:
    """The content of a regular file. What is refused while it is open is refused by the file's name.

    Raises:
        UsageError: there is no such file, or it may not be read.
        FileRefusedError: it is a folder, a pipe or a device; or the code inside refuses it.
    """
    with _open(Path(path)) as file:
        try:
            yield Content(file, 0, os.fstat(file.fileno()).st_size)
        except FileRefusedError as error:
            raise FileRefusedError(f"{path}: {error}") from None


def _open(path: Path) -> BinaryIO:
    try:
        _refuse_irregular(path, os.stat(path).st_mode)
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except FileRefusedError:
        raise
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    try:
        _refuse_irregular(path, os.fstat(descriptor).st_mode)  # another file may have taken the name meanwhile
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def _refuse_irregular(path: Path, mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise FileRefusedError(f"{path}: {FOLDER}")
    if not stat.S_ISREG(mode):
        raise FileRefusedError(f"{path}: is a pipe, a socket or a device, not a file; write what it gives to a file")


FOLDER = "is a folder; name the file in it"


def storage_buffer(storage: Any) -> memoryview:
    """The memory of a torch storage, to be read into."""
    import torch

    flat = torch.empty(0, dtype=torch.uint8).set_(storage)
    array: Any = flat.numpy()
    return memoryview(array).cast("B") if len(storage) else memoryview(b"")
