"""What a file of ours says beside its tensors: how the model is had again, its posterior, its plan, its checksums."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import torch

from ...errors import FileRefusedError
from ..untrusted.content import SHORT, Content
from ..untrusted.records import wrong_field
from ..untrusted.safetensors_file import DTYPES, Entry, Header, read_header

KEY = "bayesify"  # of the description, in a safetensors file's metadata
_CHECKSUM = "sha256"
FORMAT = 1


@dataclass(frozen=True)
class Factory:
    """The code that builds the plain network: `package.module:callable`, and its keyword arguments."""

    spec: str
    args: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Description:
    """What the file says. All of it is JSON.

    Attributes:
        nodes: the table of inert nodes that the next three refer to.
        structure: the value of the whole model; None where only its code can build it.
        tensors: the value of {name: Parameter or buffer}, under every name that it has.
        conversion: the value of what `conversion.conversion_of` says; what makes a plain network the converted one.
        checksums: the CRC-32 of each tensor's bytes.
        factory: the code that builds the plain network, if it was given.
        versions: of bayesify, torch and Python, when it was written.
        plan: the plan, as `Plan.to_dict()`, and the policy in it, if they were given.
        extras: what else is kept with the model.
        format: the version of this format.
    """

    nodes: list[dict[str, Any]]
    structure: Any
    tensors: Any
    conversion: Any
    checksums: dict[str, int]
    factory: Factory | None = None
    versions: dict[str, str] = field(default_factory=dict)
    plan: dict[str, Any] | None = None
    extras: dict[str, Any] = field(default_factory=dict)
    format: int = FORMAT


def present_versions() -> dict[str, str]:
    """The versions that a file written now is written with."""
    from ... import __version__

    return {"bayesify": __version__, "torch": torch.__version__, "python": platform.python_version()}


def header_of(description: Description, sizes: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]) -> bytes:
    """The bytes before the tensors: a safetensors header with the description in its metadata, aligned to 64 bytes.

    Args:
        description: the description.
        sizes: the dtype and shape of each tensor, in the order in which they are written.
    """
    names = {dtype: name for name, dtype in DTYPES.items()}
    entries, at = {}, 0
    for name, (dtype, shape) in sizes.items():
        size = dtype.itemsize * int(torch.Size(shape).numel())
        entries[name] = {"dtype": names[dtype], "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(asdict(description))
    metadata = {KEY: text, _CHECKSUM: _digest(text, entries)}
    header = json.dumps({"__metadata__": metadata, **entries}).encode()
    header += b" " * (-(8 + len(header)) % 64)
    return len(header).to_bytes(8, "little") + header


def is_ours(header: Header) -> bool:
    """Whether a safetensors file is one of ours."""
    return KEY in header.metadata


def read_description(content: Content) -> tuple[Header, Description]:
    """The header and the description of a file of ours.

    Raises:
        FileRefusedError: it is damaged, or of a later format.
    """
    header = read_header(content)
    text = header.metadata[KEY]
    start = min((entry.start for entry in header.entries.values()), default=0)
    entries = {name: entry_of(entry, start) for name, entry in header.entries.items()}
    if header.metadata.get(_CHECKSUM) != _digest(text, entries):
        raise FileRefusedError(f"its description differs from its checksum; {SHORT}")
    return header, parsed(text)


def parsed(text: str) -> Description:
    """The description that its JSON says.

    Raises:
        FileRefusedError: it is damaged, or of a later format.
    """
    try:
        given = json.loads(text)
        if given.get("format") != FORMAT:
            raise FileRefusedError(f"is in format {given.get('format')} of bayesify's; install a newer bayesify")
        known = {name.name: given[name.name] for name in fields(Description) if name.name in given}
        factory = known.get("factory")
        read = Description(**{**known, "factory": None if factory is None else Factory(**factory)})
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        if isinstance(error, FileRefusedError):
            raise
        raise FileRefusedError(f"its description is damaged; {SHORT}") from None
    wrong = wrong_field(read) or (read.factory and wrong_field(read.factory))
    if wrong:
        raise FileRefusedError(f"its description is damaged: {wrong}; {SHORT}")
    return read


def entry_of(entry: Entry, start: int) -> dict[str, Any]:
    names = {dtype: name for name, dtype in DTYPES.items()}
    place = entry.start - start
    return {"dtype": names[entry.dtype], "shape": list(entry.shape), "data_offsets": [place, place + entry.size]}


def _digest(text: str, entries: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps([text, sorted(entries.items())]).encode()).hexdigest()
