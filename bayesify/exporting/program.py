"""torch.export of what is exported, and its .pt2 file."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from ..errors import UsageError
from ..escaping import first_line
from .networks import Network

METADATA = "bayesify.json"  # of the archive's further files
_BATCH = "batch"

Outputs = Callable[[Sequence[Tensor]], list[Tensor]]


def program_of(module: nn.Module, args: Any, kwargs: Any, shapes: Any) -> torch.export.ExportedProgram:
    """The module traced with these arguments, without the places of the code that it comes from.

    Raises:
        UsageError: torch cannot trace it, or ties it to one size of the batch.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            program = torch.export.export(module, args, kwargs, dynamic_shapes=shapes, strict=False)
        except Exception as error:
            fixed = " For a batch of just this size: dynamic_batch=False (--fixed-batch)." if _is_about(error) else ""
            raise UsageError(f"torch.export does not take this model: {first_line(error)}{fixed}") from error
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    return program


def shapes_of(dims: Sequence[int | None]) -> list[Any]:
    """For each tensor its open dimension, as torch.export has it."""
    batch = torch.export.Dim(_BATCH)
    return [None if dim is None else {dim: batch} for dim in dims]


def write_pt2(network: Network, file: BinaryIO, metadata: dict[str, Any]) -> Outputs:
    """Write the archive; what it computes, when torch.export.load has opened it."""
    call = network.one.call
    args, kwargs = network.split(call.tensors)
    shapes = dict(zip(call.names, shapes_of(call.dims), strict=True))
    program = program_of(network, args, kwargs, shapes if call.is_dynamic else None)
    for name, tensor in program.state_dict.items():  # the file is run, not trained: no graph is built when it runs
        if isinstance(tensor, nn.Parameter):
            program.state_dict[name] = nn.Parameter(tensor.detach(), requires_grad=False)
    torch.export.save(program, file, extra_files={METADATA: json.dumps(metadata, indent=2)})
    file.flush()
    file.seek(0)
    module: Any = torch.export.load(file).module()

    def outputs(tensors: Sequence[Tensor]) -> list[Tensor]:
        args, kwargs = network.split(tensors)
        given = module(*args, **kwargs)
        return [given] if isinstance(given, Tensor) else list(given.values())

    return outputs


def _is_about(error: Exception) -> bool:
    return _BATCH in str(error) and "onstraint" in str(error)
