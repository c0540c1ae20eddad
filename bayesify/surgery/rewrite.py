"""What conversion does to a model, and its inverse. `all_or_nothing` runs both."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from ..decision import Decision
from ..errors import UsageError
from ..files.model_file.conversion import PLAN, keep_plan
from ..nn.base import Variational
from ..nn.basis import start_along
from ..nn.folded_batches import unwatch_examples, watch_examples
from ..nn.hooks import keep_unfused
from ..nn.kl import Ledger
from ..nn.parametrized_weights import identity
from ..nn.posterior_tensors import mean_of, posterior_tensors
from ..nn.registry import converted_class, plain_class, rerouting
from ..nn.rerouting import Rerouting
from ..nn.starts import remember_start
from ..nn.tied_weights import keep_ties, release_ties
from ..nn.watched_forwards import unwatch_forwards, watch_forwards
from ..planning.plan import Plan
from ..programs.program import insert_layers, take_out_layers


def rewrite(made: Plan, model: nn.Module, kl_name: str, axes: Mapping[str, Tensor]) -> None:
    """Make the model what its plan says, in place. `axes` is what `input_axes` found."""
    insert_layers(model, made.insertions)
    modules = dict(model.named_modules(remove_duplicate=False))
    for module, cls, row, tensors in list(_prepared(made, modules)):
        module.__class__ = cls
        module.add_posterior(row.settings, tensors)
        if row.name in axes:
            start_along(module, "weight", axes[row.name])
        remember_start(module)
    for row in made.rows:
        if row.reads:
            _reroute(modules[row.name])._reads = row.reads
        if row.hides and row.verb == "adjusted":
            _reroute(modules[row.name])
        if row.uncompiled:
            modules[row.name]._uncompiled = True
        if row.verb == "adjusted":
            _adjust(modules[row.name])
    if any(row.settings is not None and row.settings.rows > 1 for row in made.rows):
        watch_examples(model, made.batch_arguments)
    watch_forwards(model, [row.name for row in made.rows if row.beside])
    keep_ties(model)
    setattr(model, kl_name, Ledger(model))
    keep_plan(model, made.to_dict())


def take_back(model: nn.Module) -> None:
    """Make the model what it was before `rewrite`, in place, around its Parameters as they are now."""
    for module in model.modules():
        if isinstance(module, Variational):
            plain = plain_class_of(module)
            module.remove_posterior()
            module.__class__ = plain  # type: ignore[assignment]
        elif isinstance(module, Rerouting):
            module.__class__ = plain_class(type(module))  # type: ignore[assignment]
        _readjust(module)
    take_out_layers(model)
    vars(model).pop(PLAN, None)


def plain_class_of(layer: Variational) -> type[nn.Module]:
    """The class that the layer had before it was converted.

    Raises:
        UsageError: its class was derived from a variational one.
    """
    try:
        return plain_class(type(layer))
    except KeyError:
        words = "was derived from a variational layer: there is no plain class to go back to"
        raise UsageError(f"{type(layer).__name__} {words}") from None


def _prepared(made: Plan, modules: dict[str, nn.Module]) -> Iterator[tuple[Any, type, Decision, dict[str, Tensor]]]:
    shared: dict[tuple[tuple[int, ...], str], Tensor] = {}
    for row in made.converting():
        module = modules[row.name]
        assert row.method is not None
        assert row.settings is not None
        cls = converted_class(module, row.method, bool(row.settings.weights))
        tensors = posterior_tensors(module, row.settings)
        for name in tensors:
            mean = mean_of(name)
            key = identity(module, mean), name.removeprefix(mean)
            tensors[name] = shared.setdefault(key, tensors[name])
        yield module, cls, row, tensors


def _reroute(module: Any) -> Any:
    if not isinstance(module, Rerouting):
        module.__class__ = rerouting(type(module))
    return module


def _adjust(module: nn.Module) -> None:
    if isinstance(module, nn.TransformerEncoder):
        _reroute(module)
    elif isinstance(module, nn.TransformerEncoderLayer):
        module.register_forward_pre_hook(keep_unfused)


def _readjust(module: Any) -> None:
    unwatch_examples(module)
    unwatch_forwards(module)
    for name in ("_reads", "_uncompiled", "_calibration"):
        vars(module).pop(name, None)
    release_ties(module)
    for key in [key for key, hook in module._forward_pre_hooks.items() if hook is keep_unfused]:
        del module._forward_pre_hooks[key]
    for name in [name for name, value in vars(module).items() if isinstance(value, Ledger)]:
        delattr(module, name)
