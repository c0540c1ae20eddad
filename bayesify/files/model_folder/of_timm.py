"""A network of timm: the architecture that config.json names, and the weights beside it."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..fit_weights import Tell
from .configuration import Configured
from .libraries import filled, library


def network(given: Configured, *, meta: bool, tell: Tell) -> nn.Module:
    """The network, as `timm.create_model("local-dir:FOLDER", pretrained=True)` gives it, in eval mode.

    Raises:
        FileRefusedError: timm has not this architecture, or the weights are not its own.
    """
    timm = library("timm", given.folder)
    return filled(given, "model of timm", lambda: _made(timm, given.config), meta=meta, tell=tell)


def _made(timm: Any, config: Any) -> nn.Module:
    said = dict(config.get("pretrained_cfg") or {})
    said.update({name: config[name] for name in ("num_classes", "label_names") if name in config})
    return timm.create_model(  # type: ignore[no-any-return]
        config["architecture"], pretrained_cfg=said, **(config.get("model_args") or {})
    )
