"""Carries a plan out, and takes it back: the only file that changes a user's model."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer

from ..analysis.probe.example_inputs import ExampleInputs
from ..decision import Decision
from ..errors import NameClashError, NotCopyableError, UsageError, did_you_mean
from ..nn.base import Flipout, Variational
from ..nn.folded_batches import unwatch_examples, watch_examples
from ..nn.hooks import keep_unfused
from ..nn.kl import Ledger, layers_of, terms
from ..nn.parametrized_weights import computed_tensors, identity, is_computed, mask, sources
from ..nn.posterior_tensors import SUFFIXES, mean_of, posterior_tensors
from ..nn.registry import converted_class, plain_class, rerouting
from ..nn.rerouting import Rerouting
from ..planning.plan import Plan
from ..planning.planner import plan
from ..policy.policy import PolicyLike
from ..programs.program import from_exported, insert_layers, is_exported
from .reset import refuse_lazy
from .tied_weights import keep_ties, release_ties

Model = TypeVar("Model", bound=nn.Module)

_RESERVED = {*(f"weight_{suffix}" for suffix in SUFFIXES), *Variational.__annotations__, *dir(Flipout)}


def convert(
    model: Model, policy: PolicyLike = "flipout", *, example_inputs: ExampleInputs | None = None, inplace: bool = False,
    kl_name: str = "kl",
) -> Model:  # fmt: skip
    """Make the model variational: its plan, carried out.

    The result has the model's outputs, names and classes (each converted layer is a subclass of what it was), noise in
    every forward pass, and `kl()`, the KL(q‖p) in nats: `loss = nll + model.kl() / n_train`. Optimizers, averages of
    weights, `torch.compile` and distributed wrappers come after.

    Args:
        model: the trained model; left as it was unless `inplace`.
        policy: a Policy, a dict, the path of a YAML file, or the name of a preset or method.
        example_inputs: what the model is called with: see `plan`. Where dimension 0 of a layer is not the model's batch
            (sequence-first networks, windows or tokens folded into it), they tell it where its examples are.
        inplace: rewrite `model` itself: the same Parameter objects, no copy of the weights.
        kl_name: the attribute that `kl` becomes, where the model has one of that name.

    Raises:
        NameClashError: the model has an attribute `kl_name` already.
        NotCopyableError: torch cannot deep-copy the model.
        PolicyError, NothingToConvertError, WrappedModelError, AlreadyVariationalError: see `plan`.
    """
    if is_exported(model):
        model, inplace = _private(model, inplace), True
    return carry_out(plan(model, policy, example_inputs=example_inputs), model, inplace=inplace, kl_name=kl_name)


def carry_out(made: Plan, model: Model, *, inplace: bool = False, kl_name: str = "kl") -> Model:
    """`convert`, for who has the model's plan already.

    Raises:
        NameClashError, NotCopyableError: see `convert`.
    """
    _refuse_clash(model, kl_name)
    # tensors made in inference mode would never get a gradient
    with torch.inference_mode(False):
        target = model if inplace else _copied(model)
        insert_layers(target, made.insertions)
        _rewrite(made, target, kl_name)
    return target


def flipout(layer: Model, **settings: Any) -> Model:
    """Make one layer variational under Flipout: `convert` in place; `settings` as in a policy, `prior={"std": 1.0}`."""
    return convert(layer, {"method": "flipout", **settings}, inplace=True)


def lrt(layer: Model, **settings: Any) -> Model:
    """Make one layer variational under local reparameterization: `convert` in place; `settings` are a policy's."""
    return convert(layer, {"method": "lrt", **settings}, inplace=True)


def revert(model: Model, weights: Literal["mean", "sample"] = "mean", *, inplace: bool = False) -> Model:
    """Take the conversion back: the original classes, hooks and switches again.

    Args:
        model: a converted model; left as it was unless `inplace`.
        weights: `mean` keeps the posterior means; `sample` draws one set of weights from the posterior.

    Raises:
        NotVariationalError: the model has no variational layer.
        UsageError: `weights` is another word, or a layer's class was derived from a variational one.
        UninitializedLayerError: `sample`, and a lazy layer has not seen data.
    """
    if weights not in ("mean", "sample"):
        near = did_you_mean(weights, ("mean", "sample"))
        raise UsageError(f"weights={weights!r} is neither 'mean' nor 'sample'.{near}")
    for layer in layers_of(model):
        _plain_class(layer)
    if weights == "sample":
        refuse_lazy(model, "there is nothing to draw")
        _refuse_computed(model)
    target = model if inplace else _copied(model)
    if weights == "sample":
        for term in terms(target):
            layer = term.layers[0]
            sources(layer, term.mean_name)[0].data.copy_(layer.draw(term.mean_name))
    _take_back(target)
    return target


def _refuse_computed(model: nn.Module) -> None:
    for term in terms(model):
        layer, name = term.layers[0], term.mean_name
        if is_computed(layer, name) and mask(layer, name) is None:
            raise UsageError(
                f"the {name} of {term.layer_name!r} is computed by a parametrization, and no draw of it can be "
                "written: revert to the mean"
            )


def _refuse_clash(model: nn.Module, kl_name: str) -> None:
    if not kl_name.isidentifier():
        raise UsageError(f"kl_name={kl_name!r} is no name for an attribute")
    if hasattr(model, kl_name) or kl_name in _RESERVED:
        whose = type(model).__name__ if hasattr(model, kl_name) else "a variational layer"
        raise NameClashError(
            f"{whose} has an attribute {kl_name!r} already: name another, convert(..., kl_name='kl_q')"
        )


def _copied(model: Model) -> Model:
    lazy: Any = [each for each in model.buffers() if type(each) is UninitializedBuffer]
    # torch's LazyBatchNorm has buffers that torch cannot copy
    fresh: Any = UninitializedBuffer
    memo: dict[int, Any] = {id(each): fresh(False, each.device, each.dtype) for each in lazy}
    try:
        computed = (each for module in model.modules() for each in computed_tensors(module))
        memo |= {id(each): each.detach().clone() for each in computed}
        return copy.deepcopy(model, memo)
    except Exception as error:
        why = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        raise NotCopyableError(
            f"torch cannot deep-copy this {type(model).__name__} ({why}); inplace=True works on the model itself"
        ) from error


def _private(program: Any, inplace: bool) -> Any:
    if inplace:
        raise UsageError("an exported program cannot be rewritten in place: convert(program) gives a module of its own")
    return _copied(from_exported(program))


def _rewrite(made: Plan, model: nn.Module, kl_name: str) -> None:
    """All that is known to fail comes first, and the rest is undone if it fails: the model is as it was then."""
    modules = dict(model.named_modules(remove_duplicate=False))
    prepared = list(_prepare(made, modules))
    try:
        for module, cls, row, tensors in prepared:
            module.__class__ = cls
            module.add_posterior(row.settings, tensors)
        for row in made.rows:
            if row.reads:
                _reroute(modules[row.name])._reads = row.reads
            if row.uncompiled:
                modules[row.name]._uncompiled = True
            if row.verb == "adjusted":
                _adjust(modules[row.name])
        if any(row.settings is not None and row.settings.rows > 1 for row in made.rows):
            watch_examples(model, made.batch_dim)
        keep_ties(model)
        setattr(model, kl_name, Ledger(model))
    except BaseException:
        _take_back(model)
        raise


def _prepare(made: Plan, modules: dict[str, nn.Module]) -> Iterator[tuple[Any, type, Decision, dict[str, Tensor]]]:
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


def _take_back(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, Variational):
            plain = _plain_class(module)
            module.remove_posterior()
            module.__class__ = plain  # type: ignore[assignment]
        elif isinstance(module, Rerouting):
            module.__class__ = plain_class(type(module))  # type: ignore[assignment]
        _readjust(module)


def _plain_class(layer: Variational) -> type[nn.Module]:
    try:
        return plain_class(type(layer))
    except KeyError:
        words = "was derived from a variational layer: there is no plain class to go back to"
        raise UsageError(f"{type(layer).__name__} {words}") from None


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
    for name in ("_reads", "_uncompiled", "_calibration"):
        vars(module).pop(name, None)
    release_ties(module)
    for key in [key for key, hook in module._forward_pre_hooks.items() if hook is keep_unfused]:
        del module._forward_pre_hooks[key]
    for name in [name for name, value in vars(module).items() if isinstance(value, Ledger)]:
        delattr(module, name)
