"""Where in a training checkpoint its weights are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from ..errors import FileRefusedError, UsageError, did_you_mean
from ..escaping import shell_word
from .untrusted.global_names import words
from .untrusted.placeholders import Placeholder


def pick(content: Any, key: str | None) -> tuple[Mapping[str, Any], str]:
    """The state_dict that `key` names, or the only one that the file clearly means."""
    candidates = dict(_candidates(content, ""))
    if key is not None:
        return _under(content, key, candidates), key
    if not candidates:
        raise FileRefusedError(
            f"holds neither a model nor weights but {_describe(content)}; save model.state_dict()"
        )
    place = _clear_one(candidates)
    if place is None:
        listed = ", ".join(f"{name} ({_tensors(state)} tensors)" for name, state in list(candidates.items())[:10])
        call = f"--weights FILE --key {shell_word(next(iter(candidates)))}"
        raise FileRefusedError(f"holds several sets of weights: {listed}; name one: {call}")
    return candidates[place], place


def _under(content: Any, key: str, candidates: Mapping[str, Any]) -> Mapping[str, Any]:
    if key in candidates:
        return candidates[key]  # type: ignore[no-any-return]
    inside = content
    for part in _split(content, key):
        inside = inside.get(part) if isinstance(inside, Mapping) else None
    inside = _module_weights(inside) or inside
    if not isinstance(inside, Mapping) or not _tensors(inside):
        known = ", ".join(name for name in candidates if name) or "none"
        hint = did_you_mean(key, candidates)
        raise UsageError(f"--key {key!r}: the file has no weights there; weights are under: {known}.{hint}")
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


def _clear_one(candidates: Mapping[str, Mapping[str, Any]]) -> str | None:
    """The only candidate, or the only one with a usual name, if it holds ten times what any other does."""
    if len(candidates) == 1:
        return next(iter(candidates))
    usual = [place for place in candidates if place.rpartition(".")[2] in _USUAL]
    if len(usual) != 1:
        return None
    sizes = {
        place: sum(value.numel() for value in state.values() if isinstance(value, Tensor))
        for place, state in candidates.items()
    }
    largest = sizes.pop(usual[0])
    return usual[0] if all(10 * size <= largest for size in sizes.values()) else None


_USUAL = words("state_dict model model_state model_state_dict net network weights params module model_weights")
_OPTIMIZER_KEYS = frozenset({"param_groups", "exp_avg", "exp_avg_sq", "momentum_buffer", "square_avg"})


def _module_weights(value: Any, prefix: str = "") -> dict[str, Tensor] | None:
    """The state_dict of a pickled nn.Module that was read as a placeholder; None for anything else."""
    state = value.state if isinstance(value, Placeholder) else None
    if not isinstance(state, Mapping) or not {"_parameters", "_buffers", "_modules"} <= set(state):
        return None
    left_out = state.get("_non_persistent_buffers_set")
    passing = left_out if isinstance(left_out, set) else ()
    if not all(isinstance(state[table], Mapping) for table in ("_parameters", "_buffers", "_modules")):
        return None
    own = {**state["_parameters"], **{name: value for name, value in state["_buffers"].items() if name not in passing}}
    weights = {f"{prefix}{name}": value for name, value in own.items() if isinstance(value, Tensor)}
    for name, child in state["_modules"].items():
        weights |= _module_weights(child, f"{prefix}{name}.") or {}
    return weights


def _describe(content: Any) -> str:
    if isinstance(content, Placeholder):
        return f"an object of {content.name}"
    if isinstance(content, Mapping):
        return f"a dict with the keys {', '.join(map(repr, list(content)[:8]))}" if content else "an empty dict"
    return f"only a value of type {type(content).__name__}"
