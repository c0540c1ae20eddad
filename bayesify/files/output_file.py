"""Where a result goes, at a caller's word: refused with what is in the way, and written whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from os import PathLike
from pathlib import Path
from typing import BinaryIO

from ..errors import UsageError
from .weight_files import refuse_other_folder
from .whole_file import whole_file


@contextlib.contextmanager
def output_file(
    path: str | PathLike[str], *, overwrite: bool, sources: Sequence[str | PathLike[str]] = ()
) -> Iterator[BinaryIO]:
    """As `whole_file`, with what is in the way as an error of ours: entered before any long work, it is told at once.

    What the block itself raises passes as it is; `told` is for what it writes.

    Args:
        path: the file.
        overwrite: whether one that is there, or appears meanwhile, is replaced; behind a link, if one is there now.
        sources: files that never are, under whatever name.

    Raises:
        UsageError: it cannot be written there.
    """
    target = output_target(path, overwrite=overwrite, sources=sources)
    with contextlib.ExitStack() as stack:
        with told(path):
            file = stack.enter_context(whole_file(target, overwrite=overwrite))
        yield file
        with told(path):
            stack.close()


def output_target(
    path: str | PathLike[str], *, overwrite: bool, sources: Sequence[str | PathLike[str]], folder: bool = False
) -> Path:
    """Where exactly it is written; of a folder, a place that is free, empty, or has one of ours.

    Raises:
        UsageError: something else is there, or it is a source.
    """
    place = Path(path)
    target = Path(os.path.realpath(place) if overwrite else os.path.join(os.path.realpath(place.parent), place.name))
    for source in sources:
        if os.path.exists(target) and os.path.exists(source) and os.path.samefile(target, source):
            raise UsageError(f"{path}: is {source} itself, which is never overwritten")
    if folder:
        refuse_other_folder(target)
    elif os.path.isdir(target):
        raise UsageError(f"{path}: is a folder; name the file to write")
    elif os.path.exists(target) and not os.path.isfile(target):
        raise UsageError(f"{path}: is not a regular file; name the file to write")
    if not overwrite and os.path.lexists(target):
        raise UsageError(f"{path}: exists already")
    if not target.parent.is_dir():
        raise UsageError(f"{path}: there is no folder {target.parent}; make it first")
    return target


@contextlib.contextmanager
def told(path: str | PathLike[str]) -> Iterator[None]:
    """What the system says against writing, as an error of ours."""
    try:
        yield
    except FileExistsError:
        raise UsageError(f"{path}: exists already") from None
    except OSError as error:
        raise UsageError(f"{path}: cannot be written ({error.strerror or error})") from None
