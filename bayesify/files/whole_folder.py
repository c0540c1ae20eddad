"""Writing a folder whole or not at all: it is made beside the target, and takes its place when it is complete."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import secrets
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from .whole_file import sync_folder


@contextlib.contextmanager
def whole_folder(target: Path, *, overwrite: bool) -> Iterator[Path]:
    """A new folder that takes the target's place when the block ends, on disk by then.

    Where the block fails, nothing of it is left, and an older folder stays as it was.

    Raises:
        FileExistsError: there is something in the target's place, and it shall not be overwritten.
        OSError: the system's reason why it cannot be written.
    """
    fresh = target.with_name(f".{target.name[:60]}.{secrets.token_hex(8)}.tmp")
    try:
        fresh.mkdir()
        yield fresh
        _sync(fresh)
        _take_place(fresh, target, overwrite)
        sync_folder(target.parent)
    finally:
        _remove(fresh)


def _remove(folder: Path) -> None:
    """All of it, also where a signal comes meanwhile and ends the process as an error does."""
    try:
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _sync(folder: Path) -> None:
    for place, _, names in os.walk(folder):
        for name in names:
            with open(os.path.join(place, name), "rb") as file:
                os.fsync(file.fileno())
        sync_folder(Path(place))


def _take_place(fresh: Path, target: Path, overwrite: bool) -> None:
    if not os.path.lexists(target):
        os.rename(fresh, target)
    elif not overwrite:
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
    elif not _exchanged(fresh, target):
        _replace(fresh, target)


def _exchanged(fresh: Path, target: Path) -> bool:
    """Whether the system could swap both in one step (Linux: renameat2); the older folder is then the fresh one's."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None) if sys.platform == "linux" else None
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return rename is not None and rename(here, os.fsencode(fresh), here, os.fsencode(target), exchange) == 0


def _replace(fresh: Path, target: Path) -> None:
    """In two steps: between them the older folder has another name, and it comes back if the second fails."""
    aside = fresh.with_suffix(".old")
    try:
        os.rename(target, aside)
        os.rename(fresh, target)
    finally:
        if os.path.lexists(target):
            _remove(aside)
        else:
            os.rename(aside, target)
