"""Arrays of numbers out of .npz files, without numpy's reader: that trusts the sizes which a file claims."""

from __future__ import annotations

import re
from math import prod
from typing import Any

import numpy as np

from ...errors import FileRefusedError
from .content import SHORT, Content
from .zip_directory import ZipDirectory

_REPEATED, _FREE = 16, 1 << 26  # how much larger than its file an unpacked array may be, and what any may have
_OTHER = "is not an .npz file of numbers; write it by np.savez"
_MOST_DIMENSIONS = 32  # as many as every numpy has
_PREFIX = re.compile(rb"\x93NUMPY(?:\x01\0(..)|[\x02\x03]\0(....))", re.DOTALL)
_HEADER = re.compile(
    rb"\{'descr': *'([<>|=]?[biufc]\d{1,2})', *'fortran_order': *(True|False), "
    rb"*'shape': *\(((?:(?:\d{1,18}L?, *)+(?:\d{1,18}L?)?)?)\),? *\}\s*"
)


def read_npz(content: Content) -> dict[str, np.ndarray[Any, Any]]:
    """The arrays by name, as `np.savez` and `np.savez_compressed` write them.

    Raises:
        FileRefusedError: it is something else, is damaged, holds other things than numbers, or unpacks to far more
            than it is.
    """
    if content.read(0, min(2, content.size)) != b"PK":
        raise FileRefusedError(_OTHER)
    directory = ZipDirectory(content)
    if not all(name.endswith(".npy") for name in directory.members):
        raise FileRefusedError(_OTHER)
    if sum(member.size for member in directory.members.values()) > _REPEATED * content.size + _FREE:
        raise FileRefusedError("unpacks to far more than it is; write it by np.savez, not compressed")
    return {name.removesuffix(".npy"): _array(name, directory.unpacked(name)) for name in directory.members}


def _array(name: str, data: bytes) -> np.ndarray[Any, Any]:
    prefix = _PREFIX.match(data)
    length = int.from_bytes(prefix[1] or prefix[2], "little") if prefix else 0
    start = prefix.end() + length if prefix else 0
    header = _HEADER.fullmatch(data, prefix.end(), start) if prefix and start <= len(data) else None
    if header is None:
        raise FileRefusedError(f"its {name[:80]!r} is not an array of numbers; write it by np.savez")
    shape = tuple(int(size) for size in re.findall(rb"\d+", header[3]))
    dtype = _dtype(header[1].decode())
    if dtype is None or prod(shape) * dtype.itemsize != len(data) - start or len(shape) > _MOST_DIMENSIONS:
        raise FileRefusedError(f"its {name[:80]!r} is not the array that it says; {SHORT}")
    flat = np.frombuffer(data, dtype, offset=start).astype(dtype.newbyteorder("="))
    return flat.reshape(shape, order="F" if header[2] == b"True" else "C")


def _dtype(text: str) -> np.dtype[Any] | None:
    try:
        dtype = np.dtype(text)
    except TypeError:
        return None
    return dtype if dtype.itemsize else None
