"""A network with adapters of peft: the base network, the adapter's configuration, and its weights."""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ...errors import FileRefusedError, UsageError
from ...escaping import first_line
from ...regex_limits import why_slow
from ..fit_weights import Tell
from ..read_weights import plain_weights
from .configuration import Configured
from .libraries import Extent, library

_KINDS = (  # whose set-up takes nothing from elsewhere
    "ADALORA", "C3A", "DELORA", "FOURIERFT", "GRALORA", "HRA", "IA3", "LN_TUNING", "LOHA", "LOKR", "LORA", "MISS",
    "OFT", "RANDLORA", "ROAD", "TRAINABLE_TOKENS", "VBLORA", "VERA", "WAVEFT",
)  # fmt: skip
_WEIGHTS = "adapter_model.safetensors"
_SMALL = 2**24  # numbers, that adapters may have whatever the size of their base
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
        sketch = _sketch(cls, base, config, given)
        if meta:
            return sketch.eval()
        model = cls(base, config)
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


def write(model: Any, folder: Path, *, plain: Collection[str]) -> None:
    """Write peft's folder of the adapters, without the tensors that posteriors added.

    peft asks wrapped heads for all that their state has, so it gets all, and the weights are written once more.

    Args:
        plain: the names in the model's state_dict that are the plain network's.
    """
    state = model.state_dict()
    added = {id(tensor) for name, tensor in state.items() if name not in plain}
    local = os.path.isdir(str(model.active_peft_config.base_model_name_or_path))
    how = {"state_dict": state, "save_embedding_layers": "auto" if local else False}
    model.save_pretrained(folder, **how)
    named = library("peft", folder).get_peft_model_state_dict(model, **how)
    written = load_file(folder / _WEIGHTS)
    kept = {name: tensor for name, tensor in written.items() if id(named[name]) not in added}
    save_file(kept, folder / _WEIGHTS, metadata={"format": "pt"})


def _sketch(cls: Any, base: nn.Module, config: Any, given: Configured) -> nn.Module:
    """The network on the meta device, so that sizes that the file asks for are known before memory is taken."""
    light = {id(tensor): _on_meta(tensor) for tensor in (*base.parameters(), *base.buffers())}
    plain = copy.deepcopy(config)
    if hasattr(plain, "init_lora_weights"):
        plain.init_lora_weights = True
    extent = Extent.of(given.folder)
    extent.refuse_numbers(given.config)
    sketch = extent.sketch(lambda: cls(copy.deepcopy(base, dict(light)), plain))
    sizes = [sum(tensor.numel() for tensor in (*net.parameters(), *net.buffers())) for net in (base, sketch)]
    if sizes[1] > 2 * sizes[0] + _SMALL:
        raise FileRefusedError(
            f"{given.folder}: describes adapters of {sizes[1] - sizes[0]:,} numbers, for a base network of {sizes[0]:,}"
        )
    return sketch


def _on_meta(tensor: Tensor) -> Tensor:
    light = tensor.detach().to("meta")
    return nn.Parameter(light, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else light


def _config(peft: Any, given: Configured) -> Any:
    kind, start = given.config.get("peft_type"), given.config.get("init_lora_weights", True)
    if kind not in _KINDS:
        raise FileRefusedError(
            f"{given.folder}: is an adapter of the kind {str(kind)[:40]!r}; opened are {', '.join(_KINDS)}. Open it by "
            "peft, and convert the model: bayesify.convert(model)"
        )
    if not isinstance(start, bool) and not (isinstance(start, str) and start.startswith(_STARTS)):
        raise FileRefusedError(f"{given.folder}: starts its adapters by {str(start)[:40]!r}, from data elsewhere")
    for text in _patterns(given.config):
        _refuse_slow(text, given)
    try:
        config = peft.PeftConfig.from_peft_type(**given.config)
    except Exception as error:
        raise FileRefusedError(f"{given.folder}: describes no adapter of peft: {first_line(error)}") from error
    config.inference_mode = False  # adapters are what is trained
    return config


def _patterns(config: Any) -> Iterator[str]:
    """The texts that peft takes for regular expressions, or puts into one."""
    for name in ("target_modules", "exclude_modules", "modules_to_save", "layers_pattern", "target_parameters",
                 "feedforward_modules", "rank_pattern", "alpha_pattern"):  # fmt: skip
        value = config.get(name)
        yield from (text for text in ([value] if isinstance(value, str) else value or ()) if isinstance(text, str))


def _refuse_slow(text: str, given: Configured) -> None:
    try:
        slow = why_slow(text)
    except re.error as error:
        slow = f"is not one: {error}"
    if slow is not None:
        raise FileRefusedError(f"{given.folder}: the regular expression {text[:80]!r} {slow}")


def _refuse_differing(model: Any, result: Any, given: Configured) -> None:
    """Every tensor of the adapter is in the folder, by one of its names, and the folder has no other."""
    prefix, tensors = model.base_model.prefix, model.state_dict(keep_vars=True)
    absent = set(result.missing_keys)
    there = {id(tensor) for name, tensor in tensors.items() if name not in absent}
    missing = [
        name for name in result.missing_keys
        if (prefix in name or "modules_to_save" in name) and id(tensors.get(name)) not in there
    ]  # fmt: skip
    if missing or result.unexpected_keys:
        what = f"has no weights for {', '.join(missing[:5])}" if missing else ""
        other = f"has weights that its base has no place for: {', '.join(result.unexpected_keys[:5])}"
        raise FileRefusedError(f"{given.folder}: {what or other}")
