"""Makes a model variational: its plan, carried out."""

from __future__ import annotations

from keyword import iskeyword
from typing import Any, NoReturn, TypeVar

import torch
from torch import nn

from ..analysis.probe.example_inputs import ExampleInputs
from ..errors import NameClashError, UsageError, did_you_mean
from ..files.weight_warnings import warn_of_not_finite
from ..nn.base import Flipout, Variational
from ..nn.posterior_tensors import SUFFIXES
from ..planning.plan import Plan
from ..planning.planner import plan
from ..policy.policy import Policy, PolicyLike
from ..programs.program import from_exported, is_exported
from .all_or_nothing import all_or_nothing
from .copying import copied
from .input_axes import input_axes
from .rewrite import rewrite

Model = TypeVar("Model", bound=nn.Module)

_RESERVED = {*(f"weight_{suffix}" for suffix in SUFFIXES), *Variational.__annotations__, *dir(Flipout)}


def convert(
    model: Model, policy: PolicyLike = "flipout", *, example_inputs: ExampleInputs | None = None, inplace: bool = False,
    kl_name: str = "kl", **unknown: NoReturn,
) -> Model:  # fmt: skip
    """Make the model variational: its plan, carried out.

    The result has the model's outputs, names and classes (each converted layer is a subclass of what it was), noise in
    every forward pass, and `kl()`, the KL(q‖p) in nats: `loss = nll + model.kl() / n_train`. Optimizers, averages of
    weights, `torch.compile` and distributed wrappers come after. Warns of weights that are NaN or infinite.

    Args:
        model: the trained model; left as it was unless `inplace`.
        policy: a Policy, a dict, the path of a YAML file, or the name of a preset or method.
        example_inputs: what the model is called with: see `plan`. Where dimension 0 of a layer is not the model's batch
            (sequence-first networks, windows or tokens folded into it), they tell it where its examples are.
        inplace: rewrite `model` itself: the same Parameter objects, no copy of the weights. Interrupted, it is as it
            was or converted as a whole.
        kl_name: the attribute that `kl` becomes, where the model has one of that name.

    Raises:
        NameClashError: the model has an attribute `kl_name` already.
        NotCopyableError: torch cannot deep-copy the model.
        UsageError: an argument that convert does not take: a setting belongs to the policy. Or the policy asks for the
            axes of a layer's inputs, and the example inputs do not tell.
        PolicyError, NothingToConvertError, WrappedModelError, AlreadyVariationalError: see `plan`.
    """
    if unknown:
        raise UsageError(_unknown_argument(next(iter(unknown)), unknown))
    if is_exported(model):
        model, inplace = _private(model, inplace), True
    made = plan(model, policy, example_inputs=example_inputs)
    warn_of_not_finite(model, f"convert({type(model).__name__})")
    return carry_out(made, model, example_inputs=example_inputs, inplace=inplace, kl_name=kl_name)


def carry_out(
    made: Plan, model: Model, *, example_inputs: ExampleInputs | None = None, inplace: bool = False, kl_name: str = "kl"
) -> Model:
    """`convert`, for who has the model's plan already.

    Raises:
        NameClashError, NotCopyableError, UsageError: see `convert`.
    """
    refuse_clash(model, kl_name)
    axes = input_axes(model, made, example_inputs)
    # tensors made in inference mode would never get a gradient
    with torch.inference_mode(False):
        target = model if inplace else copied(model)
        all_or_nothing(target, lambda: rewrite(made, target, kl_name, axes))
    return target


def flipout(layer: Model, **settings: Any) -> Model:
    """Make one layer variational under Flipout: `convert` in place; `settings` as in a policy, `prior={"std": 1.0}`."""
    return convert(layer, {"method": "flipout", **settings}, inplace=True)


def lrt(layer: Model, **settings: Any) -> Model:
    """Make one layer variational under local reparameterization: `convert` in place; `settings` are a policy's."""
    return convert(layer, {"method": "lrt", **settings}, inplace=True)


def refuse_clash(model: object, kl_name: str) -> None:
    """Raise where the converted model's `kl` cannot have this name.

    Raises:
        NameClashError: the model, or every variational layer, has an attribute of that name.
        UsageError: it is not a name for an attribute.
    """
    another = "name another one by kl_name='kl_q' (on the command line --kl-name kl_q)"
    if not kl_name.isidentifier() or iskeyword(kl_name):
        raise UsageError(f"kl_name={kl_name!r} is not a name for an attribute: {another}")
    if _has(model, kl_name) or kl_name in _RESERVED:
        whose = type(model).__name__ if _has(model, kl_name) else "a variational layer"
        raise NameClashError(f"{whose} has an attribute {kl_name!r} already, and the model's KL needs one: {another}")


def _has(model: object, name: str) -> bool:
    """Whether it has an attribute of that name in truth: a `__getattr__` may answer to every name."""
    registered = (getattr(model, kind, {}) for kind in ("_parameters", "_buffers", "_modules"))
    return name in dir(type(model)) or name in getattr(model, "__dict__", {}) or any(name in own for own in registered)


def _unknown_argument(name: str, given: dict[str, Any]) -> str:
    settings = ("method", *Policy.model_fields)
    if name == "method":
        return f"convert takes no `method`: the method is a policy by itself, convert(model, {given[name]!r})"
    if name in settings:
        return f"convert takes no `{name}`, which a policy has: convert(model, {{{name!r}: ...}})"
    near = did_you_mean(name, ("policy", "example_inputs", "inplace", "kl_name", *settings))
    return f"convert takes no argument {name!r}.{near}"


def _private(program: Any, inplace: bool) -> Any:
    if inplace:
        raise UsageError("an exported program cannot be rewritten in place: convert(program) gives a module of its own")
    return copied(from_exported(program))
