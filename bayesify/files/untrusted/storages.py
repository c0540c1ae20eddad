"""The memory of a file's tensors: which storages there are, how long they are, and reading one when it is asked for."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ...errors import FileRefusedError
from .content import SHORT, storage_buffer
from .global_names import Name
from .nodes import Persistent

Fill = Callable[[str, memoryview], None]


@dataclass(frozen=True)
class TypedMemory:
    """A storage and the dtype that its identifier gives it; None where each tensor says its own."""

    memory: torch.UntypedStorage
    dtype: torch.dtype | None

    def storage(self) -> torch.TypedStorage | torch.UntypedStorage:
        """torch's own object for it: what a file holds that holds a storage without a tensor."""
        typed: Any = torch.TypedStorage
        return self.memory if self.dtype is None else typed(wrap_storage=self.memory, dtype=self.dtype, _internal=True)


class Storages:
    """The storages of one file by key.

    Args:
        sizes: how many bytes each has.
        fill: puts a storage's bytes into memory.
        meta: read nothing; the storages are on the meta device.
        order: the byte order that the file was written in.
    """

    def __init__(self, sizes: Mapping[str, int], fill: Fill, *, meta: bool, order: str = sys.byteorder) -> None:
        self.sizes = sizes
        self._fill = fill
        self._meta = meta
        self._swap = order != sys.byteorder
        self._read: dict[str, torch.UntypedStorage] = {}

    @property
    def total(self) -> int:
        """The bytes of all of them together."""
        return sum(self.sizes.values())

    def typed(self, node: Persistent) -> TypedMemory:
        """The storage of an identifier, read at the first time.

        Raises:
            FileRefusedError: the identifier is not one that torch writes, or the file has not these bytes.
        """
        key, count, dtype = described(node)
        size = count * (dtype or torch.uint8).itemsize
        if self.sizes.get(key) != size:
            raise FileRefusedError(f"storage {key[:40]!r} should hold {size} bytes; {SHORT}")
        return self.bytes_of(key, dtype)

    def bytes_of(self, key: str, dtype: torch.dtype | None = None) -> TypedMemory:
        """A storage by its key.

        Raises:
            FileRefusedError: there is none.
        """
        if key not in self.sizes:
            raise FileRefusedError(f"has no {key[:40]!r}; {SHORT}")
        if key not in self._read:
            self._read[key] = self._memory(key, self.sizes[key], dtype)
        return TypedMemory(self._read[key], dtype)

    def _memory(self, key: str, size: int, dtype: torch.dtype | None) -> torch.UntypedStorage:
        if self._meta:
            return torch.UntypedStorage(size, device="meta")  # type: ignore[no-untyped-call]
        memory = torch.UntypedStorage(size)  # type: ignore[no-untyped-call]
        self._fill(key, storage_buffer(memory))
        if self._swap and (dtype or torch.uint8).itemsize > 1:
            memory.byteswap(dtype)  # type: ignore[no-untyped-call]
        return memory


def described(node: Any) -> tuple[str, int, torch.dtype | None]:
    """(key, number of elements, dtype) of a storage's identifier.

    Raises:
        FileRefusedError: it is not one that torch writes.
    """
    parts = node.identifier if isinstance(node, Persistent) else None
    if not isinstance(parts, tuple) or len(parts) not in (5, 6) or parts[0] != "storage":
        raise FileRefusedError("refers to data outside the file; save it again with torch.save")
    _, kind, key, _, count, *view = parts
    if isinstance(kind, Name) and kind.module == "torch" and kind.qualname in _QUANTIZED:
        raise FileRefusedError("holds quantized weights, which no noise can be put on; give the model before it was")
    named = isinstance(kind, Name) and isinstance(key, str) and kind.qualname in _DTYPES
    if not named or type(count) is not int or count < 0 or any(view):
        raise FileRefusedError(f"describes a tensor that cannot be; {SHORT}")
    return key, count, _DTYPES[kind.qualname]


_DTYPES: dict[str, torch.dtype | None] = {
    "UntypedStorage": None, "ByteStorage": torch.uint8, "CharStorage": torch.int8, "BoolStorage": torch.bool,
    "ShortStorage": torch.int16, "IntStorage": torch.int32, "LongStorage": torch.int64, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "FloatStorage": torch.float32, "DoubleStorage": torch.float64,
    "ComplexFloatStorage": torch.complex64, "ComplexDoubleStorage": torch.complex128,
}  # fmt: skip
_QUANTIZED = ("QInt8Storage", "QUInt8Storage", "QInt32Storage", "QUInt4x2Storage", "QUInt2x4Storage")
