"""A network with adapters of peft: the base network, the adapter's configuration, and its weights."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from torch import nn

from ...errors import FileRefusedError, UsageError
from ...escaping import first_line
from ..fit_weights import Tell
from ..read_weights import plain_weights
from .configuration import Configured
from .libraries import library

_KINDS = ("LORA", "ADALORA", "IA3", "LOHA", "LOKR")  # whose set-up takes nothing from elsewhere
_STARTS = ("gaussian", "olora", "orthogonal", "pissa")  # of LoRA, that need no data and no file


def base_folder(given: Configured) -> Path:
    """Where the base network is: the folder that the configuration names, seen from here or from beside the adapter.

    Raises:
        UsageError: there is none.
    """
    found = _base_here(given)
    if found is not None:
        return found
    name = given.config.get("base_model_name_or_path")
    raise UsageError(
        f"{given.folder}: is an adapter of {str(name)[:80]!r}, which is not a folder here: name the base network's "
        f"folder, --base FOLDER, or in Python bayesify.load({str(given.folder)!r}, into=base_network)"
    )


def _base_here(given: Configured) -> Path | None:
    name = given.config.get("base_model_name_or_path")
    places = (Path(name), given.folder.parent / name) if isinstance(name, str) and name else ()
    return next((place for place in places if place.is_dir() and not os.path.samefile(place, given.folder)), None)


def network(given: Configured, base: nn.Module, *, meta: bool, tell: Tell) -> nn.Module:
    """The base network with its adapters, in eval mode, as `PeftModel.from_pretrained(base, FOLDER)` gives it.

    Raises:
        FileRefusedError: the adapter is of a kind that would read from elsewhere, or does not fit the base.
    """
    peft = library("peft", given.folder)
    config = _config(peft, given)
    place = str(getattr(getattr(base, "config", None), "name_or_path", None) or "")
    if _base_here(given) is None and os.path.isdir(place):
        config.base_model_name_or_path = place  # so that a folder which is written from here finds its base
    cls = peft.MODEL_TYPE_TO_PEFT_MODEL_MAPPING.get(config.task_type, peft.PeftModel)
    try:
        model = cls(base, config)
        if meta:
            return model.to("meta").eval()  # type: ignore[no-any-return]
        weights = plain_weights(given.folder)
        result = peft.set_peft_model_state_dict(model, dict(weights.state_dict))
    except FileRefusedError:
        raise
    except Exception as error:
        raise FileRefusedError(f"{given.folder}: the adapter doesn't fit its base: {first_line(error)}") from error
    for note in weights.notes[1:]:
        tell(f"{given.folder}: {note}")
    _refuse_differing(model, result, given)
    return model.eval()  # type: ignore[no-any-return]


def _config(peft: Any, given: Configured) -> Any:
    kind, start = given.config.get("peft_type"), given.config.get("init_lora_weights", True)
    if kind not in _KINDS:
        raise FileRefusedError(
            f"{given.folder}: is an adapter of the kind {str(kind)[:40]!r}; opened are {', '.join(_KINDS)}. Open it by "
            "peft, and convert the model: bayesify.convert(model)"
        )
    if not isinstance(start, bool) and not (isinstance(start, str) and start.startswith(_STARTS)):
        raise FileRefusedError(f"{given.folder}: starts its adapters by {str(start)[:40]!r}, from data elsewhere")
    try:
        config = peft.PeftConfig.from_peft_type(**given.config)
    except Exception as error:
        raise FileRefusedError(f"{given.folder}: describes no adapter of peft: {first_line(error)}") from error
    config.inference_mode = False  # adapters are what is trained
    return config


def _refuse_differing(model: Any, result: Any, given: Configured) -> None:
    """Every tensor of the adapter is in the folder, and the folder has no other."""
    prefix = model.base_model.prefix
    missing = [name for name in result.missing_keys if prefix in name or "modules_to_save" in name]
    if missing or result.unexpected_keys:
        what = f"has no weights for {', '.join(missing[:5])}" if missing else ""
        other = f"has weights that its base has no place for: {', '.join(result.unexpected_keys[:5])}"
        raise FileRefusedError(f"{given.folder}: {what or other}")
