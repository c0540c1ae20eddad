"""transformers' ties: it names them by regular expressions, which would take the posterior's tensors for the weight's.

`cls.decoder.weight` there matches `cls.decoder.weight_rho` too, and `tie_weights()` would put the embedding's weight in
the scale's place. In a converted model the expressions end where the name does.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from .posterior_tensors import SUFFIXES

_KEYS = "_tied_weights_keys"
_START = "(?:)"  # matches nothing, and keeps transformers from taking the expression for a mere name
_END = f"(?!.*_({'|'.join(SUFFIXES)})$)"


def keep_ties(model: nn.Module) -> None:
    """End the model's expressions where names end, and tie what the posteriors of tied weights share."""
    for module in model.modules():
        keys = getattr(module, _KEYS, None)
        if isinstance(keys, dict) and keys:
            ended = {f"{_START}{target}{_END}": f"{_START}{source}{_END}" for target, source in keys.items()}
            setattr(module, _KEYS, ended | dict(_shared(module, keys)))


def release_ties(module: nn.Module) -> None:
    """The inverse, for one module."""
    keys = vars(module).get(_KEYS)
    if not isinstance(keys, dict) or not any(key.endswith(_END) for key in keys):
        return
    plain = {_plain(target): _plain(source) for target, source in keys.items() if target.endswith(_END)}
    delattr(module, _KEYS)
    if getattr(module, _KEYS, None) != plain:
        setattr(module, _KEYS, plain)


def _plain(name: str) -> str:
    return name.removeprefix(_START).removesuffix(_END)


def _shared(module: nn.Module, keys: dict[str, str]) -> Iterator[tuple[str, str]]:
    for target, source in keys.items():
        for suffix in SUFFIXES:
            scale, other = (_at(module, f"{name}_{suffix}") for name in (target, source))
            if scale is not None and scale is other:
                yield f"{target}_{suffix}$", f"{source}_{suffix}$"


def _at(module: nn.Module, name: str) -> Any:
    path, _, leaf = name.rpartition(".")
    try:
        owner = module.get_submodule(path)
    except AttributeError:  # an expression, not a name
        return None
    return owner._parameters.get(leaf, owner._buffers.get(leaf))
