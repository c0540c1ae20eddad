"""Puts a converted model's posterior back to its start: around its present weights, or around a plain checkpoint's."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter, is_lazy

from ..analysis.tracer import without_weights
from ..errors import UninitializedLayerError, UsageError, did_you_mean
from ..nn.base import Variational
from ..nn.kl import Term, layers_of, terms
from ..nn.posterior_tensors import SUFFIXES, added_names
from ..nn.starts import remember_start
from ..programs.part import shown

Place = tuple[nn.Module, str]


def reset_posterior(model: nn.Module) -> None:
    """Start the posterior anew around the means as they are now: scales, and priors centred at `pretrained` weights.

    For a model that was converted on the meta device, or whose means were loaded from a plain checkpoint.

    Raises:
        NotVariationalError: the model has no variational layer.
    """
    for layer in layers_of(model):
        # a lazy layer starts at its first forward, around a mean that was loaded meanwhile too
        if not any(isinstance(parameter, UninitializedParameter) for parameter in layer._parameters.values()):
            layer.reset_posterior()
    for term in terms(model):
        _share(term)


def set_posterior_std(model: nn.Module, std: float | Tensor | Mapping[str, float | Tensor]) -> None:
    """Give posteriors of the model this std: one number for all, or what another method fitted, by name.

    Args:
        std: a number; or a mapping from the names of weights, as `named_parameters` has them (any of several names of
            a tied one), to a number or a tensor of the weight's shape. What it does not name stays as it is.

    Raises:
        UsageError: a std is not positive and finite, or not of its weight's shape; or a name is not that of a
            posterior. Nothing was set.
        UninitializedLayerError: a lazy layer has not seen data.
        NotVariationalError: the model has no variational layer.
    """
    refuse_lazy(model, "its posterior std cannot be set")
    all_terms = terms(model)
    given = std if isinstance(std, Mapping) else {}
    named = _terms_by_name(model, all_terms)
    problems = [_misfit(name, value, named) for name, value in given.items()]
    if not isinstance(std, Mapping) and not (torch.as_tensor(std).dim() == 0 and _are_stds(torch.as_tensor(std))):
        problems.append(f"std={std} is not a positive, finite number")
    if any(problems):
        raise UsageError("; ".join(filter(None, problems)))
    settings = [(named[name], value) for name, value in given.items()]
    for term, value in settings if isinstance(std, Mapping) else [(term, std) for term in all_terms]:
        term.layers[0].set_std(term.mean_name, value)
        if not isinstance(std, Mapping):
            remember_start(term.layers[0])  # one number for all says nothing of the data


def load_weights(model: nn.Module, state_dict: Mapping[str, Tensor], *, assign: bool = False) -> None:
    """Load a plain model's checkpoint into the converted one, strictly except for what conversion added, and reset.

    The posterior and a `pretrained` prior start anew at the loaded weights, as if they had been there at conversion.

    Args:
        state_dict: the plain model's, complete.
        assign: as in `Module.load_state_dict`: needed where the model is on the meta device. Tied Parameters stay tied.

    Raises:
        NotVariationalError: the model has no variational layer.
        UsageError: it is not a state_dict, keys are missing or unexpected, or shapes differ; nothing was loaded.
    """
    layers_of(model)
    if not isinstance(state_dict, Mapping):
        raise UsageError(_not_a_state_dict(state_dict))
    _refuse_misfit(model, state_dict)
    tied = _tied(model)
    model.load_state_dict(state_dict, strict=False, assign=assign)
    for (first, first_name), *others in tied:
        for module, name in others:
            module._parameters[name] = first._parameters[first_name]
    reset_posterior(model)


def refuse_lazy(model: nn.Module, so: str) -> None:
    """Raise where a variational layer has no weights yet.

    Raises:
        UninitializedLayerError: a lazy layer has not seen data.
        NotVariationalError: the model has no variational layer.
    """
    layers_of(model)
    for term in terms(model):
        if isinstance(term.layers[0].scale_of(term.mean_name), UninitializedParameter):
            name = term.layer_name or type(model).__name__
            raise UninitializedLayerError(f"layer {name!r} has not seen data yet, so that {so}: run one batch first")


def _not_a_state_dict(given: object) -> str:
    if isinstance(given, str | os.PathLike):
        path = os.fspath(given)
        return f"a state_dict is needed, not a path: load_weights(model, torch.load({path!r}, weights_only=True))"
    if isinstance(given, nn.Module):
        return "a state_dict is needed, not a model: load_weights(model, plain.state_dict())"
    return f"a state_dict is needed, and {type(given).__name__} was given"


def _terms_by_name(model: nn.Module, all_terms: list[Term]) -> dict[str, Term]:
    """Every name of each posterior's mean: a shared module or a tied Parameter has several."""
    of = {(id(layer), term.mean_name): term for term in all_terms for layer in term.layers}
    layers = [(name, layer) for name, layer in _aliases(model)]
    return {shown(f"{name}.{own}".lstrip(".")): of[id(layer), own] for name, layer in layers for own in layer.means()}


def _misfit(name: str, std: float | Tensor, named: Mapping[str, Term]) -> str | None:
    """What is wrong with a std that was given by name."""
    if name not in named:
        return f"{name!r} is not the name of a posterior's mean.{did_you_mean(name, named)}"
    value = torch.as_tensor(std)
    shape = named[name].layers[0].mean_of(named[name].mean_name).shape
    if value.dim() and value.shape != shape:
        return f"the std of {name!r} has shape {tuple(value.shape)} and should have {tuple(shape)}"
    return None if _are_stds(value) else f"the std of {name!r} is not positive and finite everywhere"


def _are_stds(value: Tensor) -> bool:
    return bool(((value > 0) & value.isfinite()).all())


def _share(term: Term) -> None:
    """One posterior for one Parameter: where `reset_posterior` had to make new tensors, it made some for each layer."""
    first, *others = term.layers
    for name in (f"{term.mean_name}_{suffix}" for suffix in SUFFIXES):
        for layer in others:
            if name in first._parameters:
                layer._parameters[name] = first._parameters[name]
            elif name in first._buffers:
                layer._buffers[name] = first._buffers[name]


def _refuse_misfit(model: nn.Module, given: Mapping[str, Tensor]) -> None:
    added = {shown(f"{name}.{own}".lstrip(".")) for name, layer in _aliases(model) for own in _added(layer)}
    expected = {name: value for name, value in model.state_dict(keep_vars=True).items() if name not in added}
    problems = [f"missing {sorted(expected.keys() - given.keys())}"] if expected.keys() - given.keys() else []
    problems += [f"unexpected {sorted(given.keys() - expected.keys())}"] if given.keys() - expected.keys() else []
    for name in (name for name in expected if name in given):
        here, there = expected[name], given[name]
        tensors = isinstance(here, Tensor) and isinstance(there, Tensor) and not is_lazy(here) and not is_lazy(there)
        if tensors and here.shape != there.shape:
            problems.append(f"{name!r} has shape {tuple(there.shape)} and should have {tuple(here.shape)}")
    if problems and (added & given.keys() or not _loads(model, given, added)):
        raise UsageError(f"the checkpoint does not fit {type(model).__name__}: {'; '.join(problems)}")


def _loads(model: nn.Module, given: Mapping[str, Tensor], added: set[str]) -> bool:
    """Whether `load_state_dict` takes it strictly, except for what conversion added."""
    twin = without_weights(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that nothing is copied to the meta device: so it should be
        try:
            result = twin.load_state_dict(dict(given), strict=False)
        except RuntimeError:  # shapes
            return False
    return added.issuperset(result.missing_keys) and not result.unexpected_keys


def _aliases(model: nn.Module) -> Iterator[tuple[str, Variational]]:
    """The variational layers under every name: a state_dict has them all."""
    named = model.named_modules(remove_duplicate=False)
    return ((name, module) for name, module in named if isinstance(module, Variational))


def _added(layer: Variational) -> list[str]:
    return [name for name in added_names(layer) if name in layer._parameters or name in layer._buffers]


def _tied(model: nn.Module) -> list[list[Place]]:
    """The places that share a Parameter. Assigning a checkpoint would untie them."""
    places: dict[nn.Parameter, list[Place]] = {}
    for module in model.modules():
        for name, value in module._parameters.items():
            if value is not None:
                places.setdefault(value, []).append((module, name))
    return [shared for shared in places.values() if len(shared) > 1]
