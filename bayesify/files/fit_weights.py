"""Putting a state_dict into a model, strictly: every difference is named."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Collection, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..errors import FileRefusedError, did_you_mean
from .prefixes import LEADING, common_prefix
from .read_weights import Weights

SHOWN = 10
Tell = Callable[[str], object]


def fit(
    model: nn.Module, weights: Weights, *, ignore_keys: Sequence[str] = (), source: str, tell: Tell | None = None
) -> None:
    """Load weights into the model, in place; the model keeps its dtype, its ties and its training mode.

    Where all names have a prefix in common that the model's have not, such as Lightning's `net.`, it is stripped.

    A model on the meta device takes the weights' own memory; any other is copied into.

    Args:
        model: the model.
        weights: what `read_weights` read.
        ignore_keys: globs over names (`fc.*`) that may be missing in the file or in the model.
        source: the file, for messages.
        tell: called with what is done to the names.

    Raises:
        FileRefusedError: names that are missing or unexpected, shapes that differ.
    """
    expected = model.state_dict(keep_vars=True)
    given, prefix = _unprefixed(_renamed(weights, expected), expected, ignore_keys)
    if prefix and tell is not None:
        tell(f"{source}: stripped {prefix!r} from the names")
    given = {name: value for name, value in given.items() if name in expected or not _matches(name, ignore_keys)}
    misshapen = [name for name, value in given.items() if _differs(expected.get(name), value)]
    problems = list(_shape_problems(expected, given, [name for name in misshapen if not _matches(name, ignore_keys)]))
    given = {name: value for name, value in given.items() if name not in misshapen}
    ties = _ties(model)
    missing, unexpected = _load(model, given, source)
    _tie(model, ties, given)
    aliases = {name for group in ties if set(group) & set(given) for name in group}
    missing = [name for name in missing if name not in aliases.union(misshapen) and not _matches(name, ignore_keys)]
    problems += _name_problems("misses", missing, unexpected) + _name_problems("has unexpected", unexpected, ())
    if problems:
        raise FileRefusedError(
            f"{source} doesn't fit the model: {'; '.join(problems)}. What may differ, name by --ignore-keys PATTERN"
        )


def _renamed(weights: Weights, expected: Collection[str]) -> dict[str, Tensor]:
    """The weights under the model's names: a model that has a `module` of its own wants the prefix back."""
    if LEADING in weights.stripped and expected and all(name.startswith(LEADING) for name in expected):
        return {f"{LEADING}{name}": value for name, value in weights.state_dict.items()}
    return dict(weights.state_dict)


def _unprefixed(
    given: dict[str, Tensor], expected: Collection[str], ignore_keys: Sequence[str]
) -> tuple[dict[str, Tensor], str]:
    """Without the prefix that all names have in common and the model's have not, and the prefix."""
    counting = {name: None for name in given if not _matches(name, ignore_keys)}
    prefix = common_prefix(counting, expected)
    names = {name: name.removeprefix(prefix) if name in counting else name for name in given}
    return {names[name]: value for name, value in given.items()}, prefix


def _load(model: nn.Module, given: dict[str, Tensor], source: str) -> tuple[list[str], list[str]]:
    state = model.state_dict(keep_vars=True)
    assign = any(isinstance(value, Tensor) and value.is_meta for value in state.values())
    ready = dict(_ready(given, state)) if assign else given
    try:
        result = model.load_state_dict(ready, strict=False, assign=assign)
    except RuntimeError as error:
        line = str(error).strip().splitlines()[-1].strip()
        raise FileRefusedError(f"{source} doesn't fit the model: {line}") from None
    return list(result.missing_keys), list(result.unexpected_keys)


def _ready(given: dict[str, Tensor], state: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Tensors to assign: of the model's dtype and with memory of their own, as copying would leave them."""
    seen: set[int] = set()
    for name, value in given.items():
        place = state.get(name)
        if isinstance(value, Tensor) and isinstance(place, Tensor):
            value = value.to(place.dtype) if place.dtype.is_floating_point or place.dtype.is_complex else value
            memory = value.untyped_storage()
            if not value.is_meta and (memory.data_ptr() in seen or memory.nbytes() > value.nbytes):
                value = value.clone()
            seen.add(value.untyped_storage().data_ptr())
        yield name, value


def _ties(model: nn.Module) -> list[list[str]]:
    """Groups of names that are one Parameter or buffer of the model."""
    groups: dict[int, list[str]] = {}
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    for name, value in tensors:
        groups.setdefault(id(value), []).append(name)
    return [names for names in groups.values() if len(names) > 1]


def _tie(model: nn.Module, ties: list[list[str]], given: Collection[str]) -> None:
    """Make tied names one tensor again: assigning gave each a tensor of its own."""
    for names in ties:
        first = next((name for name in names if name in given), names[0])
        owner, attribute = _owner(model, first)
        value = getattr(owner, attribute)
        for name in names:
            owner, attribute = _owner(model, name)
            if getattr(owner, attribute) is not value:
                setattr(owner, attribute, value)


def _owner(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, attribute = name.rpartition(".")
    return model.get_submodule(path), attribute


def _differs(place: object, value: object) -> bool:
    if not isinstance(place, Tensor) or not isinstance(value, Tensor):
        return False
    return not is_lazy(place) and place.shape != value.shape


def _shape_problems(expected: dict[str, Tensor], given: dict[str, Tensor], wrong: Sequence[str]) -> Iterator[str]:
    texts = [f"{name} is {_shape(given[name])}, the model's {_shape(expected[name])}" for name in wrong]
    if wrong:
        yield f"{len(wrong)} of other shapes ({_listed(texts)})"


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a single number"


def _name_problems(verb: str, names: Sequence[str], others: Collection[str]) -> list[str]:
    if not names:
        return []
    hint = did_you_mean(names[0], others).replace(" Did", "; did") if len(others) < 2000 else ""
    return [f"it {verb} {len(names)} ({_listed(names)}{hint})"]


def _listed(texts: Sequence[str]) -> str:
    return ", ".join(texts[:SHOWN]) + (f", and {len(texts) - SHOWN} more" if len(texts) > SHOWN else "")


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def left_on_meta(model: nn.Module) -> list[str]:
    """The dotted names of tensors that are still on the meta device: parameters, any buffers, and plain attributes."""
    names = []
    for path, module in model.named_modules():
        own = {**module._parameters, **module._buffers, **_plain(module)}
        names += [f"{path}.{name}".lstrip(".") for name, value in own.items() if _on_meta(value)]
    return names


def _plain(module: nn.Module) -> dict[str, object]:
    return {name: value for name, value in vars(module).items() if name not in ("_parameters", "_buffers", "_modules")}


def _on_meta(value: object, depth: int = 0) -> bool:
    if isinstance(value, Tensor):
        return value.is_meta
    if isinstance(value, torch.device):
        return value.type == "meta"
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple | set) else ()
    return depth < 4 and any(_on_meta(part, depth + 1) for part in inside)
