"""Writing a model: whole, beside the target first, so that a failure leaves what was there."""

from __future__ import annotations

import contextlib
import os
import pickle
from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import BinaryIO

import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from ..errors import UsageError
from ..programs.program import graphs


def save(model: nn.Module, path: str | PathLike[str]) -> None:
    """Write the whole model to a file that `bayesify.load` opens.

    The file appears when it is complete: where writing fails, an older file stays as it was.

    Raises:
        UsageError: the place cannot be written, or the model holds what cannot be pickled (a lambda, a local class) or
            loaded as data (a torch.fx graph, which is pickled as code).
    """
    _refuse_code(model, path)
    target = Path(os.path.realpath(path))
    if os.path.isdir(target):
        raise UsageError(f"{path}: is a folder; name the file to write")
    if os.path.exists(target) and not os.path.isfile(target):
        raise UsageError(f"{path}: is no regular file; name the file to write")
    try:
        with _replacing(target) as file:
            torch.save(model, file)
    except OSError as error:
        raise UsageError(f"{path}: cannot be written ({error.strerror or error})") from None
    except (pickle.PicklingError, AttributeError, TypeError, RuntimeError, RecursionError) as error:
        raise UsageError(
            f"{path}: the model cannot be pickled: {_culprit(model) or str(error).splitlines()[0]}; "
            "save model.state_dict() instead, or move what it holds to a module's top level"
        ) from error


def _refuse_code(model: nn.Module, path: str | PathLike[str]) -> None:
    for name in graphs(model):
        raise UsageError(
            f"{path}: {name or 'the model'} is a torch.fx graph, which is pickled as code that no one should load: "
            "save model.state_dict(), or convert an exported program (torch.export), which is saved as data"
        )


@contextlib.contextmanager
def _replacing(target: Path) -> Iterator[BinaryIO]:
    """A new file beside the target, with any new file's permissions, that takes the target's place at the end."""
    beside = target.with_name(f".{target.name[:200]}.{os.getpid()}.tmp")
    try:
        with beside.open("xb") as file:
            yield file
            file.flush()
        os.replace(beside, target)
    finally:
        beside.unlink(missing_ok=True)


def _culprit(model: nn.Module) -> str | None:
    """The innermost class or attribute that cannot be pickled: what holds the model, as its KL does, cannot either."""
    for path, module in reversed(list(model.named_modules())):
        where = path or "the model"
        if is_parametrized(module):
            return f"{where} is parametrized, and torch saves a parametrized module's state_dict only"
        if not _pickles(type(module)):
            return f"{where} is of class {type(module).__qualname__}, which is not at its module's top level"
        for name, value in vars(module).items():
            if name not in ("_parameters", "_buffers", "_modules") and not _pickles(value):
                return f"{where} holds {name} = {str(value)[:80]}"
    return None


def _pickles(value: object) -> bool:
    try:
        pickle.dumps(value)
    except Exception:
        return False
    return True
