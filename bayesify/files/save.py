"""Writing a model: whole, beside the target first, and opened again before it takes the target's place."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from ..errors import UsageError
from ..escaping import first_line, printable
from ..nn.kl import refuse_lost_posteriors
from ..programs.program import graphs
from .model_factory import is_spec
from .model_file.description import Factory
from .model_file.differences import COMPARED_APART
from .model_file.opening import Way, comes_back, is_converted, lost_in_pickle, lost_when_opened
from .model_file.write import ModelFile, described
from .output_file import output_target, told
from .whole_file import Watched, whole_file

_NOT_DATA = (pickle.PicklingError, AttributeError, TypeError, RuntimeError)
_WAYS = (
    "name the code that builds it, save(model, path, factory='package.module:callable', args={...}); or write no "
    "structure, save(model, path, structure=False), for load(path, into=network)"
)


def save(
    model: nn.Module, path: str | PathLike[str], *, factory: str | None = None, args: Mapping[str, Any] | None = None,
    structure: bool = True, like: str | PathLike[str] | None = None, overwrite: bool = True,
    sources: Sequence[str | PathLike[str]] = (),
) -> None:  # fmt: skip
    """Write the whole model to a file, or a folder, that `bayesify.load` opens.

    A converted model becomes tensors in the layout of safetensors and JSON, with the policy and the plan that it was
    converted by, no pickle; a plain one is written by torch.save. The file appears when it is complete and would open
    again: else, an older one stays as it was. A model of transformers or peft becomes a folder where `path` ends in a
    slash or `like` is given, one of timm or diffusers with `like`: the library opens it as the plain network, `load` as
    what it is.

    Args:
        model: a converted model, or a plain one.
        path: the file, or the folder.
        factory, args: the code that builds the plain network, `package.module:callable`, and its keyword arguments,
            for one that is not data. Opening runs it only at the caller's word.
        structure: whether to write how the model is built; without it, the file fills networks that callers build.
        like: the folder that the model came from, whose other files come along: tokenizer, configuration.
        overwrite: whether what is there, or appears meanwhile, is replaced: a file, or a folder that `save` wrote.
        sources: files that never are, under whatever name.

    Raises:
        UsageError: the place cannot be written, or the model holds what is no data and no factory builds it.
        StalePosteriorError: the model had more layers with a posterior when it was converted.
    """
    _refuse_other(model, path)
    refuse_lost_posteriors(model)
    if like is not None or os.fspath(path).endswith(os.sep):
        return _save_folder(model, path, like, overwrite, sources)
    kept = _factory(factory, args)
    target = output_target(path, overwrite=overwrite, sources=sources)
    pickled = kept is None and structure and not is_converted(model)
    content = None if pickled else _opening_content(model, path, kept, structure)
    with _told(model, path), told(path), whole_file(target, overwrite=overwrite) as file:
        _write(model, path, content, file)


def _save_folder(
    model: nn.Module, path: str | PathLike[str], like: str | PathLike[str] | None, overwrite: bool,
    sources: Sequence[str | PathLike[str]],
) -> None:  # fmt: skip
    from .model_folder.writing import save_folder

    never = [*sources, *([] if like is None else [like])]
    target = output_target(path, overwrite=overwrite, sources=never, folder=True)
    with _told(model, path), told(path):
        save_folder(model, target, None if like is None else Path(like), overwrite=overwrite)


def _write(model: nn.Module, path: Any, content: ModelFile | None, file: BinaryIO) -> None:
    """The content, or the model by torch.save where there is none."""
    if content is None:
        _pickle(model, file)
        _refuse_lost(model, path, file)
        return
    for part in content.parts():
        file.write(part)


def _pickle(model: nn.Module, file: BinaryIO) -> None:
    watched = Watched(file)
    try:
        torch.save(model, cast(Any, watched))
    except Exception as error:
        # torch's writer tells of a failed write, and of an interrupt, only that writing failed
        raise (watched.failure or _interrupt(error) or error) from None
    file.flush()


def _interrupt(error: BaseException | None) -> BaseException | None:
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error


@contextlib.contextmanager
def _told(model: nn.Module, path: Any) -> Iterator[None]:
    """What is no data, as an error of ours that says what to do."""
    try:
        yield
    except _NOT_DATA as error:
        raise UsageError(f"{path}: {_why_not_data(model, error)}; {_WAYS}") from error


def _refuse_lost(model: nn.Module, path: Any, file: BinaryIO) -> None:
    lost = lost_in_pickle(model, file)
    if lost is not None:
        raise UsageError(f"{path}: {_with_culprit(model, lost)}; {_WAYS}")


def _why_not_data(model: nn.Module, error: Exception) -> str:
    return f"the model cannot be pickled: {_culprit(model, _pickles) or first_line(error)}"


def _with_culprit(model: nn.Module, lost: str) -> str:
    culprit = _culprit(model, comes_back)
    return lost if culprit is None else f"{lost} ({culprit})"


def _factory(spec: str | None, args: Mapping[str, Any] | None) -> Factory | None:
    if spec is None:
        if args:
            raise UsageError("args= are those of a factory: give factory='package.module:callable' too")
        return None
    if not is_spec(spec):
        raise UsageError(f"factory={spec!r}: write package.module:callable, as in torchvision.models:resnet18")
    try:
        return Factory(spec, json.loads(json.dumps(dict(args or {}))))
    except (TypeError, ValueError) as error:
        raise UsageError(f"args of {spec} must be plain values, as in JSON: {error}") from None


def _opening_content(model: nn.Module, path: Any, factory: Factory | None, structure: bool) -> ModelFile:
    """The file with the model's structure if that is data, else without; it opens, and with all that the model has."""
    ways: list[Way] = ["structure"] if structure else []
    ways += ["factory"] if factory is not None else [] if structure else ["into"]
    problems: list[str] = []
    for way in ways:
        try:
            content = described(model, factory=factory, structure=way == "structure")
            lost = lost_when_opened(model, content, way)
        except _NOT_DATA as error:
            problems.append(_why_not_data(model, error))
            continue
        if lost is None:
            return content
        problems.append(_with_culprit(model, lost) if way == "structure" else f"with its factory, {lost}")
    raise UsageError(f"{path}: {'; '.join(problems)}; {_WAYS}")


def _refuse_other(model: nn.Module, path: str | PathLike[str]) -> None:
    if not isinstance(model, nn.Module):
        raise UsageError(f"save takes a model, an nn.Module, and was given a {type(model).__name__}: save(model, path)")
    for name in graphs(model):
        raise UsageError(
            f"{path}: {name or 'the model'} is a torch.fx graph, which is pickled as code that no one should load: "
            "save model.state_dict(), or convert an exported program (torch.export), which is saved as data"
        )


def _culprit(model: nn.Module, passes: Callable[[object], bool]) -> str | None:
    """The innermost class or attribute that cannot be saved: what holds the model, as its KL does, cannot either.

    Args:
        model: the model.
        passes: whether a value can be saved.
    """
    for path, module in reversed(list(model.named_modules())):
        where = path or "the model"
        if is_parametrized(module):
            return f"{where} is parametrized, and torch saves a parametrized module's state_dict only"
        if not _pickles(type(module)):
            return f"{where} is of class {type(module).__qualname__}, which is not at its module's top level"
        for name, value in vars(module).items():
            if name not in COMPARED_APART and not passes(value):
                return f"{where} holds {name} = {printable(str(value)[:80])}"
    return None


def _pickles(value: object) -> bool:
    try:
        pickle.dumps(value)
    except Exception:
        return False
    return True
