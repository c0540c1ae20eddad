"""A network of timm: the architecture that config.json names, and the weights beside it."""

from __future__ import annotations

from typing import Any

from torch import nn

from ...errors import FileRefusedError
from ...escaping import first_line
from ..fit_weights import Tell, fit
from ..read_weights import plain_weights
from .configuration import Configured
from .libraries import Extent, library


def network(given: Configured, *, meta: bool, tell: Tell) -> nn.Module:
    """The network, as `timm.create_model("local-dir:FOLDER", pretrained=True)` gives it, in eval mode.

    Raises:
        FileRefusedError: timm has not this architecture, or the weights are not its own.
    """
    timm, extent = library("timm", given.folder), Extent.of(given.folder)
    extent.refuse_numbers(given.config)
    empty = extent.sketch(lambda: _made(timm, given))
    if meta:
        return empty
    extent.refuse_larger(empty)
    weights = plain_weights(given.folder)
    model = _made(timm, given)
    fit(model, weights, source=str(given.folder), tell=tell)
    return model


def _made(timm: Any, given: Configured) -> nn.Module:
    config = given.config
    said = dict(config.get("pretrained_cfg") or {})
    said.update({name: config[name] for name in ("num_classes", "label_names") if name in config})
    try:
        model = timm.create_model(config["architecture"], pretrained_cfg=said, **(config.get("model_args") or {}))
    except FileRefusedError:
        raise
    except Exception as error:
        raise FileRefusedError(f"{given.folder}: describes no model of timm: {first_line(error)}") from error
    return model.eval()  # type: ignore[no-any-return]
