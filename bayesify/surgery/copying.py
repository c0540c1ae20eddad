"""Deep copies of models, of what torch itself does not copy too."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.parameter import UninitializedBuffer

from ..analysis.copied_functions import deep_copy
from ..errors import NotCopyableError
from ..nn.parametrized_weights import computed_tensors

Model = TypeVar("Model", bound=nn.Module)


def copied(model: Model) -> Model:
    """A deep copy of the model.

    Raises:
        NotCopyableError: torch cannot deep-copy it.
    """
    lazy: Any = [buffer for buffer in model.buffers() if type(buffer) is UninitializedBuffer]
    # torch's LazyBatchNorm has buffers that torch cannot copy
    fresh: Any = UninitializedBuffer
    memo: dict[int, Any] = {id(buffer): fresh(False, buffer.device, buffer.dtype) for buffer in lazy}
    try:
        computed = (tensor for module in model.modules() for tensor in computed_tensors(module))
        memo |= {id(tensor): tensor.detach().clone() for tensor in computed}
        with torch.no_grad():  # the copy of a TorchScript module would have no leaves, which no optimizer takes
            twin = deep_copy(model, memo)
    except Exception as error:
        why = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        raise NotCopyableError(
            f"torch cannot deep-copy this {type(model).__name__} ({why}); inplace=True works on the model itself"
        ) from error
    for module, its_twin in zip(model.modules(), twin.modules(), strict=True):
        if isinstance(module, torch.jit.ScriptModule):
            for parameter, its_copy in zip(module.parameters(), its_twin.parameters(), strict=True):
                its_copy.requires_grad_(parameter.requires_grad)
    return twin
