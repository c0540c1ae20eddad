"""Where a result is written: a name for it, and whether it may be written there, found out before any long work."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from ..errors import UsageError
from ..files.output_file import output_file
from ..files.weight_files import refuse_other_folder
from ..policy.policy import Policy

ENDINGS = (".pt", ".pth", ".pkl", ".bin", ".ckpt")  # what files of torch.save are called


def default_output(model: str, label: str, *, factory: bool) -> Path:
    """`resnet.pt` → `resnet.flipout.pt`, and a folder `bert` → `bert.flipout`, beside it; of a factory, here."""
    if factory:
        return Path(f"{model.rpartition(':')[2]}.{label}.pt")
    path = Path(model)
    if path.is_dir():
        place = path if path.name else path.resolve()
        return place.with_name(f"{place.name}.{label}")
    stem, ending = (path.stem, path.suffix) if path.suffix in ENDINGS else (path.name.removesuffix(".pt2"), ".pt")
    return path.with_name(f"{stem}.{label}{ending}")


def label(policy: Policy) -> str:
    """What a converted file is called after: the policy's method, or its own name where it mixes methods."""
    methods = {rule.method or policy.method for rule in policy.rules} or {policy.method}
    used = methods - {"keep"}
    return str(used.pop()) if len(used) == 1 else Path(policy.source or "bayesian").stem


def check_output(
    path: str | os.PathLike[str], sources: Sequence[str | os.PathLike[str]], *, force: bool, folder: bool = False
) -> None:
    """Refuse an output that is a source under whatever name, that exists, or that cannot be written.

    Args:
        path: where the result shall go.
        sources: files that are read, which are never overwritten; one that isn't there is passed over.
        force: whether another file may be replaced.
        folder: whether it becomes a folder.

    Raises:
        UsageError: with what is in the way.
    """
    target = Path(path)
    exists = _exists(target)
    for source in sources:
        if _same(target, Path(source)):
            raise UsageError(f"{path}: is {source} itself, which is never overwritten; name another file by -o")
    _check_place(target, folder)
    if exists and not force:
        raise UsageError(f"{path}: exists already; --force replaces it, -o names another file")


@contextlib.contextmanager
def checked_output(path: str, sources: Sequence[str], *, force: bool) -> Iterator[BinaryIO]:
    """The file that a command writes, checked by `check_output` and there when the block ends: whole, or not at all.

    Raises:
        UsageError: with what is in the way.
    """
    check_output(path, sources, force=force)
    with output_file(path, overwrite=force, sources=sources) as file:
        yield file


def _exists(target: Path) -> bool:
    """Whether there is anything of this name, a link that leads nowhere included."""
    try:
        target.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise UsageError(f"{target}: cannot be written ({error.strerror})") from None
    return True


def _check_place(target: Path, as_folder: bool) -> None:
    folder = Path(os.path.realpath(target)).parent
    if as_folder:
        refuse_other_folder(target)
    elif target.is_dir():
        raise UsageError(f"{target}: is a folder; name the file to write")
    elif target.exists() and not target.is_file():
        raise UsageError(f"{target}: is not a regular file; name the file to write")
    if not folder.is_dir():
        raise UsageError(f"{target}: there is no folder {folder}; make it first")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(f"{target}: the folder {folder} may not be written to")


def _same(target: Path, source: Path) -> bool:
    """Whether both are one file: by another path, a symbolic link or a hard link."""
    try:
        return os.path.samefile(target, source)
    except OSError:
        return os.path.realpath(target) == os.path.realpath(source)
