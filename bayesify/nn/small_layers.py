"""A small layer in a plain eager call: one look at what might be wanted of it, in place of one for each thing.

Most calls are such, and that many looks take a small layer more time than its products.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..estimators.eager import transforming
from ..estimators.noise import is_counting
from .basis import has_basis
from .examples_alone import are_alone
from .late_std import rho_of
from .switches import anything_switched


def small_output(layer: Any, inputs: Sequence[Any]) -> Tensor | None:
    """The output by the layer's `small`; None where that does not serve, or more is wanted than fresh noise."""
    if len(inputs) != 1 or not _is_plain_call():
        return None
    parameters, settings, rho = layer._parameters, layer._settings, rho_of(layer, "weight")
    if rho is None or has_basis(layer, "weight") or "bias" not in parameters or layer.scale_of("bias") is not None:
        return None
    if settings.batch_dim != 0 or settings.rows > 1 or settings.posterior.narrow_dtype is not None:
        return None
    return layer.small(inputs[0], parameters["weight"], rho, parameters["bias"])  # type: ignore[no-any-return]


def _is_plain_call() -> bool:
    return not (
        torch.compiler.is_compiling() or anything_switched() or are_alone() or is_counting() or transforming()
        or torch._C._is_torch_function_mode_enabled() or torch.is_autocast_enabled("cpu")
    )  # fmt: skip
