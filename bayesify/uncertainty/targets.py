"""Batches with targets: what a model is called with, and what it should have said."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..errors import UsageError
from .calls import LABELS, Call, is_own_batch, loader_calls


def labelled_calls(model: nn.Module, loader: Iterable[Any]) -> list[tuple[Call, Any]]:
    """One call and its targets for each batch, on the model's device.

    A batch is a tuple (inputs..., target) or ((inputs...), target), a mapping with one of the keys of `LABELS`, or an
    object of a library's own with such an attribute, or `y` (torch_geometric's).

    Raises:
        UsageError: the loader is empty, or its batches hold no targets.
    """
    device = next((tensor.device for tensor in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    batches = list(loader)
    if not batches:
        raise UsageError("the loader gave no batch")
    calls = loader_calls(model, batches)
    return [(call, _on(device, _target(batch, call))) for batch, call in zip(batches, calls, strict=True)]


def _target(batch: Any, call: Call) -> Any:
    inner = batch[0] if isinstance(batch, tuple | list) and batch and isinstance(batch[0], Mapping) else batch
    if isinstance(batch, tuple | list):
        inputs = 1 if batch and isinstance(batch[0], tuple) else max(len(call.args), 1)
        if len(batch) > inputs:
            return batch[-1]
    if isinstance(inner, Mapping):
        key = next((key for key in inner if key in LABELS), None)
        if key is not None:
            return inner[key]
    elif is_own_batch(batch):
        known = [getattr(batch, name, None) for name in ("y", *sorted(LABELS))]
        target = next((value for value in known if isinstance(value, Tensor)), None)
        if target is not None:
            return target
    raise UsageError(
        "a batch holds no target: let the loader give (inputs..., target), or mappings with a key "
        f"{', '.join(sorted(LABELS))}"
    )


def _on(device: torch.device, target: Any) -> Any:
    return pytree.tree_map_only(Tensor, lambda tensor: tensor.to(device), target)
