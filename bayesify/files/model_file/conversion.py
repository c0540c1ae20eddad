"""What conversion did to a model, as plain records, and doing it again to a network that somebody else built."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn.parameter import Parameter, is_lazy

from ...errors import FileRefusedError, did_you_mean
from ...nn.base import Variational
from ...nn.folded_batches import watch_examples, watched_arguments
from ...nn.followed_means import READ_BESIDE
from ...nn.hooks import keep_unfused
from ...nn.kl import Ledger
from ...nn.posterior_tensors import added_names, posterior_tensors
from ...nn.registry import converted_class, plain_class, rerouting
from ...nn.rerouting import Rerouting
from ...nn.settings import Settings
from ...nn.starts import put_starts, starts_of
from ...nn.tied_weights import keep_ties
from ...nn.watched_forwards import watch_forwards
from ..untrusted.attributes import refuse_attribute
from ..untrusted.content import SHORT
from ..untrusted.records import matches
from .live_nodes import named_tensors

_KEPT = ("_calibration",)  # plain data that calibration keeps on a model
EXTRAS = "_bayesify_extras"  # on a model: what later steps keep with it, as JSON
PLAN = "_bayesify_plan"  # on a converted model: the plan that it was converted by, as JSON text


def keep_plan(model: nn.Module, plan: Mapping[str, Any] | None) -> None:
    """Keep the plan with the model that was converted by it; as a text, so that copies of the model share it."""
    vars(model)[PLAN] = json.dumps(plan)


def kept_plan(model: nn.Module) -> dict[str, Any] | None:
    """The plan that the model was converted by, as plain data, where it is known; a pickle may hold anything there."""
    try:
        plan = json.loads(vars(model).get(PLAN, "null"))
    except (TypeError, ValueError, RecursionError):
        return None
    return plan if isinstance(plan, dict) else None


def conversion_of(model: nn.Module) -> dict[str, Any]:
    """What conversion did: to which layers, with which settings, and to the model itself."""
    modules = dict(model.named_modules())
    return {
        "layers": {name: _layer(module) for name, module in modules.items() if isinstance(module, Variational)},
        "starts": starts_of(modules),
        "rerouting": {
            name: (tuple(module._reads), bool(module._uncompiled))
            for name, module in modules.items()
            if isinstance(module, Rerouting)
        },
        "unfused": [name for name, module in modules.items() if keep_unfused in module._forward_pre_hooks.values()],
        "examples along": watched_arguments(model),
        "watched": tuple(vars(model)[name] for name in (READ_BESIDE,) if name in vars(model)),
        "kl": [name for name, value in vars(model).items() if isinstance(value, Ledger)],
        "kept": {name: vars(model)[name] for name in _KEPT if name in vars(model)},
        "classes": {name: _path(_plain(module)) for name, module in modules.items()},
        "training": {name: module.training for name, module in modules.items()},
    }


def convert_again(network: nn.Module, conversion: Mapping[str, Any], tensors: Mapping[str, Tensor | None]) -> nn.Module:
    """Make a plain network the converted model: in place, and by name, strictly.

    Args:
        network: of the classes that the model had before it was converted.
        conversion: what `conversion_of` said of the model.
        tensors: the model's Parameters and buffers, under every name that they have.

    Raises:
        FileRefusedError: the network is another one.
    """
    modules = dict(network.named_modules())
    _refuse_other_classes(modules, conversion["classes"])
    for name, (method, settings) in conversion["layers"].items():
        layer: Any = modules[name]
        cls, added = converted_class(layer, method, bool(settings.weights)), posterior_tensors(layer, settings)
        layer.__class__ = cls
        layer.add_posterior(settings, added | _found_later(name, layer, tensors))
    put_starts(modules, conversion.get("starts", {}))
    for name, (reads, uncompiled) in conversion["rerouting"].items():
        _reroute(modules[name], reads, uncompiled)
    for name in conversion["unfused"]:
        modules[name].register_forward_pre_hook(keep_unfused)
    if conversion["examples along"]:
        watch_examples(network, [(tuple(path), int(dim)) for path, dim in conversion["examples along"]])
    for beside in conversion.get("watched", ()):
        watch_forwards(network, beside)
    _fill(network, tensors)
    if conversion["layers"]:
        keep_ties(network)
    vars(network).update({name: value for name, value in conversion["kept"].items() if name in _KEPT})
    for name in conversion["kl"]:
        setattr(network, name, Ledger(network))
    for name, training in conversion["training"].items():
        modules[name].training = bool(training)
    return network


def refuse_wrong_conversion(conversion: Any, network: nn.Module) -> None:
    """Refuse what a file says of a conversion where `conversion_of` would not say that.

    Raises:
        FileRefusedError: something is missing, of another kind, of a layer that is not listed, or would take the place
            of a method of the network.
    """
    said: dict[str, Any] = {"starts": {}, "watched": (), **conversion} if isinstance(conversion, dict) else {}
    right = set(said) == set(_SAID) and all(matches(said[part], kind) for part, kind in _SAID.items())
    if not right or any(set(said[part]) - set(said["classes"]) for part in _OF_LAYERS):
        raise FileRefusedError(f"its description is damaged: what conversion did; {SHORT}")
    for name in said["kl"]:
        refuse_attribute(type(network), name)


_SAID: dict[str, Any] = {
    "layers": dict[str, tuple[Literal["flipout", "lrt"], Settings]],
    "starts": dict[str, dict[str, tuple[float, float]]],
    "rerouting": dict[str, tuple[tuple[str, ...], bool]],
    "unfused": list[str],
    "watched": tuple[tuple[str, ...], ...],
    "examples along": tuple[tuple[tuple[str | int, ...], int], ...],
    "kl": list[str],
    "kept": dict[str, Any],
    "classes": dict[str, str],
    "training": dict[str, bool],
}
_OF_LAYERS = ("layers", "starts", "rerouting", "unfused", "training")


def _found_later(path: str, layer: nn.Module, tensors: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
    """What later steps add to a posterior: the basis of `fit_std`."""
    names = {name: f"{path}.{name}".lstrip(".") for name in added_names(layer) if name.endswith("_basis")}
    return {name: found for name, place in names.items() if (found := tensors.get(place)) is not None}


def _layer(layer: Variational) -> tuple[str, Any]:
    return layer.method, layer._settings


def _plain(module: nn.Module) -> type[nn.Module]:
    return plain_class(type(module)) if isinstance(module, Variational | Rerouting) else type(module)


def _path(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _refuse_other_classes(modules: Mapping[str, nn.Module], classes: Mapping[str, str]) -> None:
    """Two networks are the same if their layers have the same names and are of classes of the same name.

    A class's module may differ: a script's class is in `__main__` there and in a module here.
    """
    missing = [name for name in classes if name not in modules]
    if missing:
        hint = did_you_mean(missing[0], modules) if len(modules) < 2000 else ""
        raise FileRefusedError(f"has a layer {missing[0]!r}, which the network that was given has not.{hint}")
    for name, module in modules.items():
        expected, cls = classes.get(name, ""), type(module)
        if expected.rpartition(".")[2] != cls.__qualname__.rpartition(".")[2]:
            what = f"is a {expected}" if expected else "is not in the file"
            raise FileRefusedError(f"layer {name!r} {what}, and a {_path(cls)} in the network that was given")


def _reroute(module: Any, reads: tuple[str, ...], uncompiled: bool) -> None:
    if not isinstance(module, Rerouting):
        module.__class__ = rerouting(type(module))
    if reads:
        module._reads = tuple(reads)
    if uncompiled:
        module._uncompiled = True


@dataclass(frozen=True)
class _Place:
    name: str
    table: dict[str, Any]
    leaf: str


def _fill(network: nn.Module, tensors: Mapping[str, Tensor | None]) -> None:
    places = {place.name: place for place in _places(network)}
    missing = [name for name, value in tensors.items() if name not in places and value is not None]
    unexpected = [name for name in places if name not in tensors]
    problems = [f"has a tensor {missing[0]!r}, which the network has not"] if missing else []
    problems += [f"has no tensor {unexpected[0]!r}, which the network has"] if unexpected else []
    for name, place in places.items():
        present, value = place.table[place.leaf], tensors.get(name)
        if value is not None and not is_lazy(value) and not is_lazy(present) and present.shape != value.shape:
            problems.append(f"{name} is {tuple(value.shape)}, and {tuple(present.shape)} in the network")
    tied: dict[int, tuple[str, Tensor | None]] = {}
    for name, place in places.items():
        first, value = tied.setdefault(id(place.table[place.leaf]), (name, tensors.get(name)))
        if value is not tensors.get(name):
            problems.append(f"{first} and {name} are one tensor in the network and two in the file")
    if problems:
        raise FileRefusedError("; ".join(problems[:10]))
    filled: dict[int, Tensor] = {}
    for name, place in places.items():
        value = tensors[name]
        if value is not None:
            place.table[place.leaf] = filled.setdefault(id(value), _filled(place.table[place.leaf], value))


def _filled(present: Tensor, value: Tensor) -> Tensor:
    """The network's own Parameter with the file's values; where it has no memory, the file's."""
    apart = isinstance(present, Parameter) != isinstance(value, Parameter)
    if apart or any(tensor.is_meta or is_lazy(tensor) for tensor in (present, value)):
        return value
    present.requires_grad_(value.requires_grad)
    present.data = value.data.to(present.device)
    return present


def _places(network: nn.Module) -> Iterator[_Place]:
    for path, module in network.named_modules(remove_duplicate=False):
        for table in (module._parameters, module._buffers):
            for leaf, value in table.items():
                if value is not None:
                    yield _Place(f"{path}.{leaf}".lstrip("."), table, leaf)


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """The model's Parameters and buffers, under every name that they have."""
    return dict(named_tensors(model))
