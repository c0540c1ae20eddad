"""A model from the code that builds it: `package.module:callable` and, where wanted, weights to put into it."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from typing import Any

import torch
from torch import nn

from ..errors import FactoryError, UsageError, did_you_mean
from .fit_weights import fit, left_on_meta
from .read_weights import Weights, read_weights
from .untrusted.trust import current_directory_first


def build_model(
    spec: str,
    args: Mapping[str, Any] | None = None,
    *,
    weights: str | PathLike[str] | None = None,
    key: str | None = None,
    ignore_keys: Sequence[str] = (),
    meta: bool = False,
    tell: Callable[[str], object] | None = None,
) -> nn.Module:
    """Call a model's factory and load weights into what it returns, on the meta device first where that can be.

    Args:
        spec: `package.module:callable`; the current directory is looked into first, as under `python -m`.
        args: the callable's keyword arguments.
        weights, key: a file for `read_weights`, and where in it they stand.
        ignore_keys: globs over names that may be missing in the file or in the model.
        meta: read no weights; the model's tensors are on the meta device where the factory can run there.
        tell: called with what is done to the weights on the way, such as a prefix that is stripped.

    Raises:
        FactoryError: the callable is not there, fails, or returns no nn.Module.
        FileRefusedError: the weights' file is refused, or doesn't fit.
        UsageError: the spec, the file's path or the key is wrong.
    """
    loaded = None if weights is None else _read(weights, key, meta, tell)
    how: Any = {"ignore_keys": ignore_keys, "source": str(weights)}
    with current_directory_first():
        factory = _found(spec, args := args or {})
        model = _on_meta(spec, factory, args) if loaded is not None or meta else None
        if model is not None and loaded is not None:
            fit(model, loaded, tell=tell, **how)
            tell = None  # what it said is not said twice
        if model is not None and (meta or not left_on_meta(model)):
            return model
        model = _call(spec, factory, args)
    if loaded is not None:
        fit(model.to("meta") if meta else model, loaded, tell=tell, **how)
    return model


def build_network(factory: str | Callable[..., nn.Module], args: Mapping[str, Any]) -> nn.Module:
    """What a factory returns, named by `package.module:callable` or given itself.

    Raises:
        FactoryError: the callable is not there, fails, or returns no nn.Module.
        UsageError: the name is not of that form.
    """
    if not isinstance(factory, str):
        return _call(getattr(factory, "__qualname__", "the factory"), factory, args)
    with current_directory_first():
        return _call(factory, _found(factory, args), args)


def _read(path: str | PathLike[str], key: str | None, meta: bool, tell: Callable[[str], object] | None) -> Weights:
    weights = read_weights(path, key=key, meta=meta)
    if tell is not None:
        for note in weights.notes:
            tell(f"{path}: {note}")
    return weights


def parse_args(pairs: Sequence[str]) -> dict[str, Any]:
    """`["num_classes=10", "weights=null"]` -> `{"num_classes": 10, "weights": None}`: values are YAML 1.2.

    Raises:
        UsageError: a pair without `=` or a name, a name twice, or a value that is not YAML.
    """
    # Only a command with --arg pays for the import.
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    args: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name.isidentifier():
            raise UsageError(f"--arg {pair!r}: write NAME=VALUE, as in num_classes=10")
        if name in args:
            raise UsageError(f"--arg {pair!r}: {name} is given twice")
        try:
            args[name] = YAML(typ="safe", pure=True).load(text) if text else ""
        except (YAMLError, ValueError, RecursionError):
            told = f"{text[:80]!r} is not a YAML value; quote it as in '{name}=\"...\"'"
            raise UsageError(f"--arg {pair[:80]!r}: {told}") from None
    return args


def is_spec(text: str) -> bool:
    """Whether the text has the form `package.module:callable`."""
    return re.fullmatch(r"[A-Za-z_]\w*(\.\w+)*:[A-Za-z_]\w*(\.\w+)*", text) is not None


def _found(spec: str, args: Mapping[str, Any]) -> Callable[..., Any]:
    factory = _find(spec)
    _check_arguments(spec, factory, args)
    return factory


def _find(spec: str) -> Callable[..., Any]:
    if not is_spec(spec):
        raise UsageError(f"{spec!r}: write package.module:callable, as in torchvision.models:resnet18")
    module_name, _, attribute = spec.partition(":")
    thing: Any = _import(spec, module_name)
    for part in attribute.split("."):
        if not hasattr(thing, part):
            raise FactoryError(f"{spec}: {module_name} has no {attribute!r}.{did_you_mean(part, dir(thing))}")
        thing = getattr(thing, part)
    if not callable(thing):
        raise FactoryError(f"{spec}: is a {type(thing).__name__}, not a callable that builds a model")
    return thing  # type: ignore[no-any-return]


def _import(spec: str, module_name: str) -> Any:
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise FactoryError(f"{spec}: importing {module_name} fails: {error}") from error
        parent, _, last = error.name.rpartition(".")
        hint = did_you_mean(last, _modules(parent))
        raise FactoryError(f"{spec}: there is no module {error.name!r}.{hint}") from None
    except (Exception, SystemExit) as error:
        raise FactoryError(f"{spec}: importing {module_name} fails: {_one_line(error)}") from error


def _modules(parent: str) -> list[str]:
    paths = importlib.import_module(parent).__path__ if parent else None
    return [module.name for module in pkgutil.iter_modules(paths)]


def _check_arguments(spec: str, factory: Callable[..., Any], args: Mapping[str, Any]) -> None:
    """Name a wrong argument before anything is built."""
    try:
        signature = inspect.signature(factory)
        signature.bind(**args)
    except ValueError:
        return
    except TypeError as error:
        known = list(signature.parameters)
        unknown = [name for name in args if name not in known]
        hint = did_you_mean(unknown[0], known) if unknown else ""
        raise FactoryError(f"{spec}: {error}.{hint} Give its arguments by --arg NAME=VALUE") from None


def _on_meta(spec: str, factory: Callable[..., Any], args: Mapping[str, Any]) -> nn.Module | None:
    """The model on the meta device, or None where its factory can't run there."""
    try:
        with warnings.catch_warnings(), torch.device("meta"):
            warnings.simplefilter("ignore")
            model = factory(**args)
    except (Exception, SystemExit):
        return None
    return model if isinstance(model, nn.Module) else None


def _call(spec: str, factory: Callable[..., Any], args: Mapping[str, Any]) -> nn.Module:
    try:
        model = factory(**args)
    except (Exception, SystemExit) as error:
        raise FactoryError(f"{spec} fails: {_one_line(error)}") from error
    if not isinstance(model, nn.Module):
        raise FactoryError(f"{spec} returns a {type(model).__name__}, not an nn.Module")
    return model


def _one_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
