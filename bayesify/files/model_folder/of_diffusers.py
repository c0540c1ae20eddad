"""A network of diffusers, one part of a pipeline: its class and settings from config.json, its weights read by us."""

from __future__ import annotations

from typing import Any

from torch import nn

from ...errors import FileRefusedError, did_you_mean
from ...escaping import first_line
from ..fit_weights import Tell, fit
from ..json_file import read_json
from ..read_weights import plain_weights
from .configuration import Configured
from .libraries import Extent, library

CLASS = "_class_name"


def network(given: Configured, *, meta: bool, tell: Tell) -> nn.Module:
    """The network, as the class's `from_pretrained(FOLDER)` gives it, in eval mode.

    Raises:
        FileRefusedError: the class is none of diffusers' networks, or the weights are not its own.
    """
    diffusers = library("diffusers", given.folder)
    cls, extent = _class(diffusers, given), Extent.of(given.folder)
    extent.refuse_numbers(given.config)
    empty = extent.sketch(lambda: _made(cls, given))
    if meta:
        return empty
    extent.refuse_larger(empty)
    weights = plain_weights(given.folder)
    model = _made(cls, given)
    fit(model, weights, source=str(given.folder), tell=tell)
    return model


def _class(diffusers: Any, given: Configured) -> Any:
    name = str(read_json(given.folder / "config.json")[CLASS])
    known = {
        name for name in dir(diffusers) if isinstance(cls := getattr(diffusers, name, None), type)
        and issubclass(cls, diffusers.ModelMixin)
    }  # fmt: skip
    if name not in known:
        raise FileRefusedError(
            f"{given.folder}: config.json names {name[:80]!r}, which is no network of diffusers."
            f"{did_you_mean(name, known)}"
        )
    return getattr(diffusers, name)


def _made(cls: Any, given: Configured) -> nn.Module:
    try:
        model: nn.Module = cls.from_config(given.config)
    except FileRefusedError:
        raise
    except Exception as error:
        raise FileRefusedError(f"{given.folder}: describes no {cls.__name__}: {first_line(error)}") from error
    return model.eval()
