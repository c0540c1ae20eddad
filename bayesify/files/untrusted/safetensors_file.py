"""Files in the layout of safetensors: a JSON header that says where each tensor stands, then the tensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from ...errors import FileRefusedError
from .content import SHORT, Content, storage_buffer

_LONGEST_HEADER = 100_000_000  # as in safetensors itself
_DAMAGED = f"is a damaged safetensors file; {SHORT}"


@dataclass(frozen=True)
class Entry:
    """One tensor of the header: its dtype, its shape and where its bytes stand in the file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    size: int


@dataclass(frozen=True)
class Header:
    """What a safetensors file says of itself: the `metadata`, texts by name, and its tensors' `entries`."""

    metadata: Mapping[str, str]
    entries: Mapping[str, Entry]


def read_header(content: Content) -> Header:
    """The header, held to the format: every byte behind it belongs to exactly one tensor.

    Raises:
        FileRefusedError: the file is damaged, or holds a dtype that torch has not.
    """
    length = int.from_bytes(content.read(0, 8), "little")
    if length > min(_LONGEST_HEADER, content.size - 8):
        raise FileRefusedError(_DAMAGED)
    try:
        header = json.loads(content.read(8, length), object_pairs_hook=_once)
        metadata = header.pop("__metadata__", {})
        entries = {name: _entry(name, entry, 8 + length) for name, entry in header.items()}
    except FileRefusedError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise FileRefusedError(_DAMAGED) from None
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise FileRefusedError(_DAMAGED)
    _check_cover(entries, 8 + length, content.size)
    return Header(metadata, entries)


def read_tensors(content: Content, header: Header, *, meta: bool) -> dict[str, Tensor]:
    """The tensors by name, each with memory of its own."""
    return {name: read_tensor(content, entry, meta=meta) for name, entry in header.entries.items()}


def read_tensor(content: Content, entry: Entry, *, meta: bool) -> Tensor:
    """One tensor, on the meta device if `meta`."""
    if meta:
        return torch.empty(entry.shape, dtype=entry.dtype, device="meta")
    memory = torch.UntypedStorage(entry.size)  # type: ignore[no-untyped-call]
    content.read_into(entry.start, storage_buffer(memory))
    return torch.empty(0, dtype=entry.dtype).set_(memory).reshape(entry.shape)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a name twice")
    return members


def _entry(name: str, entry: dict[str, Any], start: int) -> Entry:
    dtype = DTYPES.get(entry["dtype"])
    if dtype is None:
        raise FileRefusedError(f"its {name[:80]!r} is of the type {str(entry['dtype'])[:20]!r}, which torch has not")
    shape, (first, last) = tuple(entry["shape"]), entry["data_offsets"]
    numbers = (*shape, first, last)
    if any(type(number) is not int or not 0 <= number < 1 << 62 for number in numbers) or len(shape) > 64:
        raise ValueError("a size that is not a number")
    if last - first != prod(shape) * dtype.itemsize:
        raise ValueError("sizes that disagree")
    return Entry(dtype, shape, start + first, last - first)


def _check_cover(entries: Mapping[str, Entry], start: int, end: int) -> None:
    at = start
    for entry in sorted(entries.values(), key=lambda entry: (entry.start, entry.size)):
        if entry.start != at:
            raise FileRefusedError(_DAMAGED)
        at += entry.size
    if at != end:
        raise FileRefusedError(_DAMAGED)


DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "C64": torch.complex64,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
