"""Makes a model variational: its plan, carried out."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import nn

from ..analysis.probe.example_inputs import ExampleInputs
from ..errors import NameClashError, UsageError
from ..nn.base import Flipout, Variational
from ..nn.posterior_tensors import SUFFIXES
from ..planning.plan import Plan
from ..planning.planner import plan
from ..policy.policy import PolicyLike
from ..programs.program import from_exported, is_exported
from .all_or_nothing import all_or_nothing
from .copying import copied
from .rewrite import rewrite

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
        inplace: rewrite `model` itself: the same Parameter objects, no copy of the weights. Interrupted, it is as it
            was or converted as a whole.
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
        target = model if inplace else copied(model)
        all_or_nothing(target, lambda: rewrite(made, target, kl_name))
    return target


def flipout(layer: Model, **settings: Any) -> Model:
    """Make one layer variational under Flipout: `convert` in place; `settings` as in a policy, `prior={"std": 1.0}`."""
    return convert(layer, {"method": "flipout", **settings}, inplace=True)


def lrt(layer: Model, **settings: Any) -> Model:
    """Make one layer variational under local reparameterization: `convert` in place; `settings` are a policy's."""
    return convert(layer, {"method": "lrt", **settings}, inplace=True)


def _refuse_clash(model: nn.Module, kl_name: str) -> None:
    if not kl_name.isidentifier():
        raise UsageError(f"kl_name={kl_name!r} is no name for an attribute")
    if hasattr(model, kl_name) or kl_name in _RESERVED:
        whose = type(model).__name__ if hasattr(model, kl_name) else "a variational layer"
        raise NameClashError(
            f"{whose} has an attribute {kl_name!r} already: name another, convert(..., kl_name='kl_q')"
        )


def _private(program: Any, inplace: bool) -> Any:
    if inplace:
        raise UsageError("an exported program cannot be rewritten in place: convert(program) gives a module of its own")
    return copied(from_exported(program))
