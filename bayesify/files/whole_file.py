"""Writing a file whole or not at all: no reader ever sees a part of it, and nothing that appeared meanwhile is lost."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS, errno.EXDEV, errno.ENOENT)


@contextlib.contextmanager
def whole_file(target: Path, *, overwrite: bool) -> Iterator[BinaryIO]:
    """A new file that takes the target's place when the block ends, on disk by then.

    Where the system has files without a name, one of those is written: even a process that is killed leaves nothing
    behind. It has an older file's permissions, or those of any new file. A link in the target's place is replaced, and
    never followed.

    Raises:
        FileExistsError: there is something in the target's place, and it shall not be overwritten.
        OSError: the system's reason why it cannot be written.
    """
    beside = _unique(target)
    try:
        descriptor, has_name = _created(beside)
        with os.fdopen(descriptor, "w+b") as file:
            yield file
            file.flush()
            _keep_permissions(file, target)
            os.fsync(file.fileno())
            if not has_name:
                _name(file, beside)
        if overwrite:
            os.replace(beside, target)
        else:
            _move_to_free(beside, target)
        sync_folder(target.parent)
    finally:
        with contextlib.suppress(OSError):
            beside.unlink()


def _created(beside: Path) -> tuple[int, bool]:
    """An open file in that folder, and whether it has that name; where the system can, it has none yet."""
    nameless = getattr(os, "O_TMPFILE", None)
    if nameless is not None and os.path.isdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            return os.open(beside.parent, nameless | os.O_RDWR, 0o666), False
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    return os.open(beside, flags, 0o666), True


def _unique(target: Path) -> Path:
    shortened = target.name.encode()[:150].decode(errors="ignore")
    return target.with_name(f".{shortened}.{secrets.token_hex(8)}.tmp")


def _name(file: BinaryIO, beside: Path) -> None:
    """Give a nameless file its name beside the target, from where it can take the target's place."""
    source = f"/proc/self/fd/{file.fileno()}"
    folder = os.open(beside.parent, os.O_RDONLY)
    try:
        # a plain os.link would name the link in /proc, not the file
        os.link(source, beside.name, dst_dir_fd=folder, follow_symlinks=True)
    finally:
        os.close(folder)


def _keep_permissions(file: BinaryIO, target: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        mode = os.lstat(target).st_mode
        if stat.S_ISREG(mode) and hasattr(os, "fchmod"):
            os.fchmod(file.fileno(), stat.S_IMODE(mode) & 0o777)


def _move_to_free(beside: Path, target: Path) -> None:
    try:
        os.link(beside, target, follow_symlinks=False)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        # a file system without hard links has nothing better than to look first
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from None
        os.rename(beside, target)


def sync_folder(folder: Path) -> None:
    """Have the folder's names on disk, where the system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class Watched:
    """A file that remembers why writing failed: torch's writer tells only that it did."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.failure: BaseException | None = None

    def write(self, data: Any) -> int:
        """As the file's own."""
        try:
            return self._file.write(data)
        except BaseException as error:
            self.failure = error
            raise

    def flush(self) -> None:
        """As the file's own."""
        self._file.flush()
