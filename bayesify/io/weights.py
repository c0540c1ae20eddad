"""Weights as people have them: a state_dict from safetensors or from a pickle, alone or inside a training checkpoint."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import FileRefusedError, UsageError, did_you_mean
from .archive import open_archive, reason
from .inert import Placeholder, dangerous, placeholders
from .listing import dotted
from .prefixes import strip
from .sniff import sniff


@dataclass(frozen=True)
class Weights:
    """A state_dict out of a file.

    Attributes:
        state_dict: name -> tensor, prefixes of wrappers stripped.
        key: where in the file it stood, as a dotted path; "" at the top.
        stripped: the wrappers' prefixes that were stripped: `module.` (DataParallel, DDP), `_orig_mod.` (torch.compile).
        notes: what was done, for the report, one sentence each.
    """

    state_dict: Mapping[str, Any]
    key: str = ""
    stripped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def read_weights(path: str | PathLike[str], *, key: str | None = None, meta: bool = False) -> Weights:
    """Read a state_dict, whatever the file's name and whatever stands beside the weights.

    Objects of foreign classes are read as inert placeholders and never imported; `weights_only=True` always.

    Args:
        path: safetensors, or a file of torch.save in either format: a state_dict, a checkpoint that holds one, or a model.
        key: the dotted path of the state_dict inside a checkpoint; found by itself where it is clear.
        meta: read shapes and dtypes only; the tensors are on the meta device.

    Raises:
        FileRefusedError: broken, malicious, without weights, or with several candidates and no `key`.
        UsageError: there is no such file, or nothing stands under `key`.
    """
    path = Path(path)
    if sniff(path).kind == "safetensors":
        content: Any = _read_safetensors(path, meta)
    else:
        content = _read_pickle(path, meta)
    found, place = _pick(path, content, key)
    return _cleaned(found, place)


def _read_safetensors(path: Path, meta: bool) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            if not meta:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118: not a mapping
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return {name: _on_meta(part.get_shape(), part.get_dtype()) for name, part in slices.items()}
    except (SafetensorError, OSError, KeyError) as error:
        raise FileRefusedError(f"{path}: is a damaged safetensors file ({error}); fetch or save it again") from None


def _on_meta(shape: list[int], dtype: str) -> Tensor:
    return torch.empty(shape, dtype=_SAFETENSORS_DTYPES[dtype], device="meta")


_SAFETENSORS_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool, "C64": torch.complex64,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip


def _read_pickle(path: Path, meta: bool) -> Any:
    archive = open_archive(path)
    bad = dangerous(archive.listing)
    if bad:
        raise FileRefusedError(
            f"{path}: names {dotted(bad[:10])}, which weights have no need of and which could run code when opened; refused. "
            "Ask its author for a safetensors file"
        )
    archive.check_readable()
    pairs = placeholders(archive.listing)
    try:
        with archive.opened() as file, warnings.catch_warnings(), torch.serialization.safe_globals(pairs):
            warnings.simplefilter("ignore")
            return torch.load(file, map_location="meta" if meta else "cpu", weights_only=True)
    except Exception as error:
        raise FileRefusedError(f"{path}: {reason(error)}") from None


def _pick(path: Path, content: Any, key: str | None) -> tuple[Mapping[str, Any], str]:
    """The state_dict that `key` names, or the only one that the file clearly means."""
    found = dict(_candidates(content, ""))
    if key is not None:
        return _under(path, content, key, found), key
    if not found:
        raise FileRefusedError(f"{path}: holds neither a model nor weights but {_describe(content)}; save model.state_dict()")
    place = _clear_one(found)
    if place is None:
        listed = ", ".join(f"{name or 'the top'} ({_tensors(each)} tensors)" for name, each in list(found.items())[:10])
        raise FileRefusedError(f"{path}: holds several sets of weights: {listed}; name one: --weights {path} --key {next(iter(found))}")
    return found[place], place


def _under(path: Path, content: Any, key: str, found: Mapping[str, Any]) -> Mapping[str, Any]:
    if key in found:
        return found[key]  # type: ignore[no-any-return]
    inside = content
    for part in _split(content, key):
        inside = inside.get(part) if isinstance(inside, Mapping) else None
    inside = _module_weights(inside) or inside
    if not isinstance(inside, Mapping) or not _tensors(inside):
        known = ", ".join(name for name in found if name) or "none"
        raise UsageError(f"--key {key!r}: {path} has no weights there; weights are under: {known}.{did_you_mean(key, found)}")
    return inside


def _split(content: Any, key: str) -> list[str]:
    """`a.b` is the key "a.b" where there is one, as Lightning and DeepSpeed write, else "b" under "a"."""
    return [key] if isinstance(content, Mapping) and key in content else key.split(".")


def _candidates(content: Any, place: str, depth: int = 0) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(dotted path, state_dict) of every set of weights: by structure, innermost first, optimizers' states left out."""
    module = _module_weights(content)
    if module is not None:
        yield place, module
        return
    if not isinstance(content, Mapping) or depth > 5 or not _names(content) or _OPTIMIZER_KEYS & set(content):
        return
    deeper = [
        inner
        for name, value in content.items()
        if "optim" not in name.lower() and not name.endswith("_extra_state")
        for inner in _candidates(value, f"{place}.{name}" if place else name, depth + 1)
    ]
    if deeper:
        yield from deeper
    elif _tensors(content):
        yield place, content


def _names(content: Mapping[Any, Any]) -> bool:
    return all(isinstance(name, str) for name in content)


def _tensors(content: Mapping[str, Any]) -> int:
    return sum(isinstance(value, Tensor) for value in content.values())


def _clear_one(found: Mapping[str, Mapping[str, Any]]) -> str | None:
    """The only candidate, or the only one with a usual name, if it holds ten times what any other does."""
    if len(found) == 1:
        return next(iter(found))
    usual = [place for place in found if place.rpartition(".")[2] in _USUAL]
    if len(usual) != 1:
        return None
    sizes = {place: sum(value.numel() for value in each.values() if isinstance(value, Tensor)) for place, each in found.items()}
    return usual[0] if all(10 * size <= sizes[usual[0]] for place, size in sizes.items() if place != usual[0]) else None


_USUAL = frozenset(
    "state_dict model model_state model_state_dict net network weights params module model_weights generator encoder".split()
)
_OPTIMIZER_KEYS = frozenset({"param_groups", "exp_avg", "exp_avg_sq", "momentum_buffer", "square_avg"})


def _module_weights(value: Any, prefix: str = "") -> dict[str, Tensor] | None:
    """The state_dict of a pickled nn.Module that was read as a placeholder; None for anything else."""
    state = value.state if isinstance(value, Placeholder) else None
    if not isinstance(state, Mapping) or not {"_parameters", "_buffers", "_modules"} <= set(state):
        return None
    passing = state.get("_non_persistent_buffers_set") or ()
    own = {**state["_parameters"], **{name: each for name, each in state["_buffers"].items() if name not in passing}}
    found = {f"{prefix}{name}": each for name, each in own.items() if isinstance(each, Tensor)}
    for name, child in state["_modules"].items():
        found |= _module_weights(child, f"{prefix}{name}.") or {}
    return found


def _describe(content: Any) -> str:
    if isinstance(content, Placeholder):
        return f"an object of {content.name}"
    if isinstance(content, Mapping):
        return f"a dict with the keys {', '.join(repr(name) for name in list(content)[:8])}" if content else "an empty dict"
    return f"only a value of type {type(content).__name__}"


def _cleaned(found: Mapping[str, Any], place: str) -> Weights:
    """Without what is no tensor, and without the prefixes that wrappers put before every name."""
    kept = {name: value for name, value in found.items() if isinstance(value, Tensor) or name.endswith("_extra_state")}
    notes = [f"took the weights under {place!r}"] if place else []
    dropped = sorted(set(map(str, found)) - set(kept))
    if dropped:
        notes.append(f"left out {len(dropped)} entries that are no tensors: {', '.join(dropped[:5])}")
    kept, stripped = strip(kept)
    if stripped:
        notes.append(f"stripped {' and '.join(repr(prefix) for prefix in stripped)} from the names")
    return Weights(kept, place, stripped, tuple(notes))
