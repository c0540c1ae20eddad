"""Files for the tests of bayesify.files: trained-looking models, and pickles that no pickler of torch would write."""

import io
import json
import pickle
import struct
import zipfile

import torch
from torch import nn

from bayesify.files.model_file.description import KEY, _digest

MAGIC = 0x1950A86A20F9469CFC6C


class Evil:
    """Pickles as a call."""

    def __init__(self, function, *args):
        self.call = (function, args)

    def __reduce__(self):
        return self.call


def as_zip(stream: bytes, records: dict[str, bytes] | None = None, compression: int = zipfile.ZIP_STORED) -> bytes:
    """A zipped torch file around a hand-made pickle."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        file.writestr("archive/data.pkl", stream)
        file.writestr("archive/byteorder", b"little")
        for name, content in (records or {}).items():
            file.writestr(f"archive/{name}", content)
        file.writestr("archive/version", b"3\n")
    return buffer.getvalue()


def as_old(stream: bytes, tail: bytes | None = None) -> bytes:
    """An old-format torch file around a hand-made pickle."""
    head = [MAGIC, 1001, {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}]
    return b"".join(pickle.dumps(each, 2) for each in head) + stream + (pickle.dumps([], 2) if tail is None else tail)


def saved(value, old=False, **kwargs) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=not old, **kwargs)
    return buffer.getvalue()


def edit_pickle(content: bytes, old: bytes, new: bytes, compression: int = zipfile.ZIP_STORED) -> bytes:
    """The same zipped file with its pickle changed."""
    source, buffer = zipfile.ZipFile(io.BytesIO(content)), io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        for name in source.namelist():
            data = source.read(name)
            if name.endswith("data.pkl"):
                assert old in data
                data = data.replace(old, new)
            file.writestr(name, data)
    return buffer.getvalue()


def safetensors_bytes(header: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + data


def redescribed(content: bytes, change) -> bytes:
    """A file of ours whose description `change` has changed, under a right digest."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    description = json.loads(header.pop("__metadata__")[KEY])
    change(description)
    text = json.dumps(description)
    metadata = {KEY: text, "sha256": _digest(text, header)}
    return safetensors_bytes(json.dumps({"__metadata__": metadata, **header}).encode(), content[8 + length :])


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 2))
