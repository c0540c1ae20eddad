"""Tensors from storages, every bound checked: what is outside of a storage, or repeats it endlessly, is refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import Parameter

from ...errors import FileRefusedError
from .content import SHORT
from .storages import Storages, TypedMemory

_REPEATED = 16  # how often over a file's tensors may cover its storages
_FREE = 1 << 26  # bytes that tensors may cover whatever the file's size
_MOST_DIMENSIONS = 64
_CANNOT_BE = f"describes a tensor that cannot be; {SHORT}"


class Tensors:
    """Makes the tensors of one file. Those that share a storage in the file share it here.

    A tensor may repeat its numbers (a stride of 0) as long as all tensors together stay within a small multiple of
    the file: code that copies one writes it out.
    """

    def __init__(self, storages: Storages) -> None:
        self.storages = storages
        self._left = _REPEATED * storages.total + _FREE

    def strided(
        self, memory: TypedMemory, offset: Any, size: Any, stride: Any, dtype: torch.dtype | None = None
    ) -> Tensor:
        """A tensor over a storage.

        Raises:
            FileRefusedError: it reaches beyond its storage, or repeats it too often.
        """
        dtype = dtype or memory.dtype
        if not isinstance(memory, TypedMemory) or not isinstance(dtype, torch.dtype):
            raise FileRefusedError(_CANNOT_BE)
        size, stride = _numbers(size), _numbers(stride)
        offset = _numbers((offset,))[0]
        if len(size) != len(stride) or len(memory.memory) % dtype.itemsize:
            raise FileRefusedError(_CANNOT_BE)
        held = len(memory.memory) // dtype.itemsize
        last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
        if offset > held or (prod(size) and last >= held):
            raise FileRefusedError(_CANNOT_BE)
        self._spend(prod(size) * dtype.itemsize)
        return torch.empty(0, dtype=dtype, device=memory.memory.device).set_(memory.memory, offset, size, stride)

    def on_meta(self, dtype: Any, size: Any, stride: Any) -> Tensor:
        """A tensor without data, as one on the meta device is saved.

        Raises:
            FileRefusedError: its description is not one of a tensor.
        """
        size, stride = _numbers(size), _numbers(stride)
        if not isinstance(dtype, torch.dtype) or len(size) != len(stride):
            raise FileRefusedError(_CANNOT_BE)
        return torch.empty_strided(size, stride, dtype=dtype, device="meta")

    def sparse(self, layout: Any, parts: Any) -> Tensor:
        """A sparse tensor around others, its indices held to its size.

        Raises:
            FileRefusedError: they do not fit.
        """
        whole = isinstance(parts, tuple) and len(parts) in (3, 4)
        tensors: Any = [part for part in parts if isinstance(part, Tensor)] if whole else []
        size = next((part for part in parts if isinstance(part, torch.Size)), None) if whole else None
        make: Any = torch.sparse_coo_tensor
        checked = not any(tensor.is_meta for tensor in tensors)  # without numbers there are no indices to hold to it
        try:
            if layout == torch.sparse_coo and size is not None and len(tensors) == 2:
                made = make(*tensors, _numbers(size), check_invariants=checked)
                if parts[-1] is True:
                    made = made.coalesce() if checked else made._coalesced_(True)
                return made  # type: ignore[no-any-return]
            if size is not None and len(tensors) == 3 and layout in _COMPRESSED:
                make = torch.sparse_compressed_tensor
                compressed: Tensor = make(*tensors, _numbers(size), layout=layout, check_invariants=checked)
                return compressed
        except RuntimeError:
            pass
        raise FileRefusedError(_CANNOT_BE)

    def _spend(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise FileRefusedError(
                "its tensors repeat the file's numbers far more often than a model's do; save it again without "
                "expanded ones"
            )


_COMPRESSED = (torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc)


def with_gradient(tensor: Tensor, requires_grad: Any) -> Tensor:
    """The tensor, marked to require gradients or not.

    Raises:
        FileRefusedError: it has no gradients.
    """
    if requires_grad and not (tensor.is_floating_point() or tensor.is_complex()):
        raise FileRefusedError(f"describes a tensor of whole numbers that has gradients; {SHORT}")
    return tensor.requires_grad_(bool(requires_grad))


def parameter(data: Any, requires_grad: Any) -> Parameter:
    """A Parameter around a tensor.

    Raises:
        FileRefusedError: there is no tensor, or it has no gradients.
    """
    if not isinstance(data, Tensor) or (requires_grad and not (data.is_floating_point() or data.is_complex())):
        raise FileRefusedError(_CANNOT_BE)
    return Parameter(data.detach(), requires_grad=bool(requires_grad))


def with_marks(tensor: Tensor, marks: Any) -> Tensor:
    """The tensor with the marks `conj` and `neg` that torch keeps beside its numbers.

    Raises:
        FileRefusedError: others.
    """
    if not marks:
        return tensor
    known = isinstance(marks, Mapping) and set(marks) <= {"conj", "neg"}
    if not known or not (tensor.is_complex() or (tensor.is_floating_point() and not marks.get("conj"))):
        raise FileRefusedError(_CANNOT_BE)
    set_marks: Any = torch._utils.set_tensor_metadata
    set_marks(tensor, {name: bool(value) for name, value in marks.items()})
    return tensor


def _numbers(values: Any) -> Sequence[int]:
    whole = isinstance(values, tuple) and len(values) <= _MOST_DIMENSIONS
    if not whole or any(type(value) is not int or not 0 <= value < 1 << 62 for value in values):
        raise FileRefusedError(_CANNOT_BE)
    return values  # type: ignore[no-any-return]
