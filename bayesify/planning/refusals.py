"""Models that cannot be converted as they are: wrapped, converted before, or not an nn.Module."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from ..errors import AlreadyVariationalError, UsageError, WrappedModelError
from ..nn.base import Variational

# By name, since importing FSDP takes a second; the value is the attribute that holds the wrapped model.
_WRAPPERS = {
    "torch.nn.parallel.data_parallel.DataParallel": "module",
    "torch.nn.parallel.distributed.DistributedDataParallel": "module",
    "torch.distributed.fsdp.fully_sharded_data_parallel.FullyShardedDataParallel": "module",
    "torch.optim.swa_utils.AveragedModel": "module",
    "torch._dynamo.eval_frame.OptimizedModule": "_orig_mod",
}


def refuse_model(model: object) -> None:
    """Raise where the model as a whole cannot be converted; return None where it can.

    Raises:
        UsageError: not a Python nn.Module.
        WrappedModelError: a wrapper around the model, or inside it, must come after conversion.
        AlreadyVariationalError: it was converted before.
    """
    if not isinstance(model, nn.Module) or isinstance(model, torch.jit.ScriptModule):
        raise UsageError(_not_a_module(model))
    for name, module in model.named_modules():
        wrapped = _wrapped(name, module)
        if wrapped:
            raise WrappedModelError(wrapped)
        if isinstance(module, Variational):
            where = f"layer {name!r}" if name else "the model"
            kind = type(module).__name__
            raise AlreadyVariationalError(f"already variational: {where} is a {kind}; bayesify.revert(model) first")


def _wrapped(name: str, module: nn.Module) -> str | None:
    lineage = [f"{base.__module__}.{base.__qualname__}" for base in type(module).__mro__]
    subject, path = (f"{name!r}", f"model.{name}") if name else ("the model", "model")
    # FSDP2 makes a class for each layer; its base class has moved between torch's private modules.
    if any(base.startswith("torch.distributed.") and base.endswith(".FSDPModule") for base in lineage):
        return f"{subject} was sharded by fully_shard: convert the model first, then shard it"
    wrapper = next((base for base in lineage if base in _WRAPPERS), None)
    if wrapper is None:
        return None
    kind, inner = wrapper.rpartition(".")[2], f"{path}.{_WRAPPERS[wrapper]}"
    if kind == "AveragedModel":
        return f"{subject} is an AveragedModel, which pairs parameters by order: convert {inner}, then average anew"
    how = "compiled by torch.compile" if kind == "OptimizedModule" else f"wrapped in {kind}"
    again = "compile" if kind == "OptimizedModule" else "wrap"
    return f"{subject} is {how}: convert {inner}, then {again} it again"


def _not_a_module(given: object) -> str:
    start = "bayesify converts a torch.nn.Module, and was given"
    kind = type(given).__name__
    if isinstance(given, torch.jit.ScriptModule):
        return f"{start} a TorchScript module, whose code is fixed: convert the Python model that it was made from"
    if isinstance(given, type) and issubclass(given, nn.Module):
        return f"{start} the class {given.__name__}: make a model of it first, {given.__name__}(...)"
    if isinstance(given, Mapping):
        words = f"a {kind} of {len(given)} entries"
        return f"{start} {words}: build the model, model.load_state_dict(...) the weights, then convert the model"
    return f"{start} a {kind}"
