"""Carries a plan out, and takes it back: the only file that changes a user's model."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from .errors import NameClashError, NotCopyableError, NotVariationalError, UsageError, did_you_mean
from .kl import Ledger, terms, variational_layers
from .nn.registry import plain_class, variant
from .nn.state import SUFFIXES, posterior_tensors
from .nn.variational import Variational
from .plan import Plan, Row, plan
from .policy import PolicyLike

Model = TypeVar("Model", bound=nn.Module)

_NESTED = "_nested_when_plain"  # on encoders whose nested-tensor path conversion switched off


def convert(model: Model, policy: PolicyLike = "flipout", *, inplace: bool = False, kl_name: str = "kl") -> Model:
    """Make the model variational: its plan, carried out.

    The result has the model's outputs, names and classes (each converted layer is a subclass of what it was), noise in
    every forward pass, and `kl()`, the KL(q‖p) in nats: `loss = nll + model.kl() / n_train`. Optimizers, averages of
    weights, `torch.compile` and distributed wrappers come after.

    Args:
        model: the trained model; left as it was unless `inplace`.
        policy: a Policy, a dict, the path of a YAML file, or the name of a preset or method.
        inplace: rewrite `model` itself: the same Parameter objects, no copy of the weights.
        kl_name: the attribute that `kl` becomes, where the model has one of that name.

    Raises:
        NameClashError: the model has an attribute `kl_name` already.
        NotCopyableError: torch cannot deep-copy the model.
        PolicyError, NothingToConvertError, WrappedModelError, AlreadyVariationalError: see `plan`.
    """
    made = plan(model, policy)
    _refuse_clash(model, kl_name)
    target = model if inplace else _copied(model)
    _carry_out(made, target)
    setattr(target, kl_name, Ledger(target))
    return target


def flipout(layer: Model, **settings: Any) -> Model:
    """Make one layer variational under Flipout: `convert` in place; `settings` are a policy's (`prior={"std": 1.0}`)."""
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
        UsageError: `weights` is another word.
    """
    if weights not in ("mean", "sample"):
        raise UsageError(f"weights={weights!r} is neither 'mean' nor 'sample'.{did_you_mean(weights, ('mean', 'sample'))}")
    _layers(model)
    target = model if inplace else _copied(model)
    if weights == "sample":
        for term in terms(target):
            layer = term.layers[0]
            getattr(layer, term.mean_name).data.copy_(layer.draw(term.mean_name))
    for layer in _layers(target):
        _put_back(layer)
    for module in target.modules():
        _readjust(module)
    return target


@contextmanager
def posterior_mean(model: nn.Module) -> Iterator[None]:
    """No noise inside: every layer computes with its posterior mean, as the model that was converted did.

    Raises:
        NotVariationalError: the model has no variational layer.
    """
    switches = [(layer, "_quiet") for layer in _layers(model)]
    switches += [(module, "use_nested_tensor") for module in model.modules() if hasattr(module, _NESTED)]
    before = [getattr(module, switch) for module, switch in switches]
    for module, switch in switches:
        setattr(module, switch, True)
    try:
        yield
    finally:
        for (module, switch), value in zip(switches, before, strict=True):
            setattr(module, switch, value)


def reset_posterior(model: nn.Module) -> None:
    """Start the posterior anew around the means as they are now: scales, and priors centred at `pretrained` weights.

    For a model that was converted on the meta device, or whose means were loaded from a plain checkpoint.

    Raises:
        NotVariationalError: the model has no variational layer.
    """
    done: dict[nn.Parameter, Variational] = {}
    for layer in _layers(model):
        if any(is_lazy(getattr(layer, name)) for name in layer.means()):
            continue
        first = done.setdefault(layer.weight, layer)
        if first is layer:
            layer.reset_posterior()
        else:
            _share(first, layer)


def set_posterior_std(model: nn.Module, std: float) -> None:
    """Give every posterior of the model this std.

    Raises:
        UsageError: std is not a positive, finite number.
        NotVariationalError: the model has no variational layer.
    """
    if not 0 < std < float("inf"):
        raise UsageError(f"std={std} is not a positive, finite number")
    _layers(model)
    for term in terms(model):
        term.layers[0].set_std(term.mean_name, std)


def load_weights(model: nn.Module, state_dict: Mapping[str, Tensor], *, assign: bool = False) -> None:
    """Load a plain model's checkpoint into the converted one, strictly but for what conversion added; then reset.

    The posterior and a `pretrained` prior start anew at the loaded weights, as if they had been there at conversion.

    Args:
        state_dict: the plain model's, complete.
        assign: as in `Module.load_state_dict`: needed where the model is on the meta device.

    Raises:
        NotVariationalError: the model has no variational layer.
        RuntimeError: keys are missing or unexpected, or shapes differ; nothing but the fitting tensors was loaded.
    """
    _layers(model)
    added = {f"{name}.{own}".lstrip(".") for name, layer in variational_layers(model) for own in _added(layer)}
    expected = model.state_dict(keep_vars=True).keys() - added
    missing, unexpected = sorted(expected - state_dict.keys()), sorted(state_dict.keys() - expected)
    if missing or unexpected:
        raise UsageError(
            f"the checkpoint does not fit {type(model).__name__}: missing {missing or 'nothing'}, "
            f"unexpected {unexpected or 'nothing'}"
        )
    model.load_state_dict(state_dict, strict=False, assign=assign)
    reset_posterior(model)


def keep_unfused(module: nn.Module, args: Any) -> None:
    """A forward pre-hook that does nothing: with any hook on it, torch's encoder layer calls its layers one by one."""


def _layers(model: nn.Module) -> list[Variational]:
    layers = [layer for _, layer in variational_layers(model)]
    if not layers:
        raise NotVariationalError(f"{type(model).__name__} has no variational layer: call bayesify.convert first")
    return layers


def _added(layer: Variational) -> list[str]:
    return [name for name in layer.state_dict(keep_vars=True) if name.endswith(tuple(f"_{end}" for end in SUFFIXES))]


def _refuse_clash(model: nn.Module, kl_name: str) -> None:
    if not kl_name.isidentifier():
        raise UsageError(f"kl_name={kl_name!r} is no name for an attribute")
    if hasattr(model, kl_name):
        raise NameClashError(
            f"{type(model).__name__} has an attribute {kl_name!r} already: name another, convert(..., kl_name='kl_q')"
        )


def _copied(model: Model) -> Model:
    try:
        return copy.deepcopy(model)
    except Exception as error:
        raise NotCopyableError(
            f"torch cannot deep-copy this {type(model).__name__} ({type(error).__name__}: {str(error).splitlines()[0]}); "
            "inplace=True converts the model itself"
        ) from error


def _carry_out(made: Plan, model: nn.Module) -> None:
    """All that can fail comes first, so that a failure leaves the model as it was."""
    modules = dict(model.named_modules(remove_duplicate=False))
    prepared = list(_prepare(made, modules))
    for module, cls, row, tensors in prepared:
        module.__class__ = cls
        module.add_posterior(row.settings, tensors)
    for row in made.rows:
        if row.verb == "adjusted":
            _adjust(modules[row.name])


def _prepare(made: Plan, modules: dict[str, nn.Module]) -> Iterator[tuple[Any, type, Row, dict[str, Tensor]]]:
    shared: dict[tuple[int, str], Tensor] = {}
    for row in made.converting():
        module = modules[row.name]
        assert row.method is not None
        assert row.settings is not None
        cls = variant(type(module), row.method)
        assert cls is not None
        tensors = posterior_tensors(module, row.settings)
        for name in tensors:
            mean = module._parameters[name.partition("_")[0]]
            tensors[name] = shared.setdefault((id(mean), name), tensors[name])
        yield module, cls, row, tensors


def _share(first: Variational, layer: Variational) -> None:
    for name in _added(first):
        if name in layer._parameters or name in layer._buffers:
            setattr(layer, name, getattr(first, name))


def _put_back(layer: Variational) -> None:
    cls = plain_class(type(layer))
    layer.remove_posterior()
    layer.__class__ = cls  # type: ignore[assignment]


def _adjust(module: nn.Module) -> None:
    if isinstance(module, nn.TransformerEncoder):
        setattr(module, _NESTED, True)
        module.use_nested_tensor = False
    else:
        module.register_forward_pre_hook(keep_unfused)


def _readjust(module: nn.Module) -> None:
    for key in [key for key, hook in module._forward_pre_hooks.items() if hook is keep_unfused]:
        del module._forward_pre_hooks[key]
    if hasattr(module, _NESTED):
        module.use_nested_tensor = True
        delattr(module, _NESTED)
    for name in [name for name, value in vars(module).items() if isinstance(value, Ledger)]:
        delattr(module, name)
