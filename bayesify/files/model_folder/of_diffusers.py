"""A network of diffusers, one part of a pipeline: its class and settings from config.json, its weights read by us."""

from __future__ import annotations

from typing import Any

from torch import nn

from ...errors import FileRefusedError, did_you_mean
from ..fit_weights import Tell
from ..json_file import read_json
from .configuration import Configured
from .libraries import filled, library

CLASS = "_class_name"


def network(given: Configured, *, meta: bool, tell: Tell) -> nn.Module:
    """The network, as the class's `from_pretrained(FOLDER)` gives it, in eval mode.

    Raises:
        FileRefusedError: the class is none of diffusers' networks, or the weights are not its own.
    """
    diffusers = library("diffusers", given.folder)
    cls = _class(diffusers, given)
    return filled(given, cls.__name__, lambda: cls.from_config(given.config), meta=meta, tell=tell)


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
