"""What a file is, from its bytes and never from its name."""

from __future__ import annotations

import codecs
import pickle
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Literal

from ...errors import FileRefusedError
from .byte_stream import MalformedPickleError
from .content import FOLDER, Content, opened
from .pickle_reader import read_pickle
from .safetensors_file import read_header
from .zip_directory import ZipDirectory

Kind = Literal[
    "torch zip", "torch old", "safetensors", "TorchScript", "torch.export", "numpy", "zip", "empty", "folder", "text",
    "git-lfs pointer", "web page", "HDF5", "Keras", "TensorFlow", "ONNX", "GGUF", "torch tar", "pickle",
    "truncated", "unknown",
]  # fmt: skip

MAGIC_NUMBER = 0x1950A86A20F9469CFC6C  # opens every file that torch.save writes in the old format


@dataclass(frozen=True)
class Sniffed:
    """What a file is.

    Attributes:
        kind: one of `Kind`; `torch zip` and `torch old` (torch.save's two formats) and `safetensors` can be read.
        refusal: for every other kind, what it is and what to do instead, as the end of a sentence that names the file.
    """

    kind: Kind
    refusal: str | None = None


def sniff(path: str | PathLike[str]) -> Sniffed:
    """Tell what a file is from its bytes.

    Raises:
        UsageError: there is no such file, or it may not be read.
        FileRefusedError: it is a pipe or a device.
    """
    if Path(path).is_dir():
        return _refused("folder")
    with opened(path) as content:
        return kind_of(content)


def kind_of(content: Content) -> Sniffed:
    """Tell what an opened file is from its bytes."""
    head = content.read(0, min(4096, content.size))
    if not head:
        return _refused("empty")
    if head.startswith(b"PK\x03\x04"):
        return _zipped(content)
    if head.startswith(b"\x80"):  # a pickle's first byte, and that of a safetensors header of 640 bytes
        as_tensors = _safetensors(head, content)
        return as_tensors if as_tensors is not None and as_tensors.refusal is None else _pickled(content)
    for magic, kind in _MAGICS.items():
        if head.startswith(magic):
            return _refused(kind)
    if content.size > 8 and content.read(content.size - 8, 8) == _TABLE_END:
        return _refused("TensorFlow")
    if head[257:262] == b"ustar":
        return _refused("torch tar")
    return _safetensors(head, content) or _refused(_onnx(head) or _text(head) or "unknown")


def _refused(kind: Kind) -> Sniffed:
    return Sniffed(kind, _REFUSALS[kind])


def _zipped(content: Content) -> Sniffed:
    try:
        names = ZipDirectory(content).members
    except FileRefusedError as error:
        return Sniffed("truncated", str(error))
    inside = {name.split("/", 1)[-1] for name in names} | set(names)
    if "constants.pkl" in inside or any(name.startswith("code/") for name in inside):
        return _refused("TorchScript")
    if "archive_format" in inside or "serialized_exported_program.json" in inside:
        return _refused("torch.export")
    if any(name.endswith(".weights.h5") for name in inside):
        return _refused("Keras")
    if "data.pkl" in inside:
        return Sniffed("torch zip")
    return _refused("numpy" if names and all(name.endswith(".npy") for name in names) else "zip")


def _pickled(content: Content) -> Sniffed:
    try:
        if read_pickle(content.part(0, min(64, content.size))).root == MAGIC_NUMBER:
            return Sniffed("torch old")
    except (MalformedPickleError, FileRefusedError):
        whole = content.read(content.size - 1, 1) == pickle.STOP
        return _refused("pickle" if whole else "truncated")
    return _refused("pickle")


def _safetensors(head: bytes, content: Content) -> Sniffed | None:
    """8 bytes of length, a JSON header of that length that says where each tensor ends, the tensors."""
    length = int.from_bytes(head[:8], "little")
    if head[8:9] != b"{" or length < 2:
        return None
    if 8 + length > content.size:
        return _refused("truncated") if length < 1 << 32 else None
    try:
        read_header(content)
    except FileRefusedError as error:
        return Sniffed("truncated", str(error))
    return Sniffed("safetensors")


def _text(head: bytes) -> Kind | None:
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(head).lstrip("\ufeff \t\r\n").lower()
    except UnicodeDecodeError:
        return None
    if "\0" in text:
        return None
    if text.startswith("version https://git-lfs"):
        return "git-lfs pointer"
    return "web page" if text.startswith(("<!doctype", "<html", "<?xml", "<head")) else "text"


def _onnx(head: bytes) -> Kind | None:
    """A protocol buffer whose first field is a small IR version, followed by a string field."""
    return "ONNX" if head[:1] == b"\x08" and head[1:2] < b"\x20" and head[2:3] in (b"\x12", b"\x1a", b"\x3a") else None


_MAGICS: dict[bytes, Kind] = {b"\x89HDF\r\n\x1a\n": "HDF5", b"\x93NUMPY": "numpy", b"GGUF": "GGUF"}

_TABLE_END = bytes.fromhex("57fb808b247547db")  # of a sorted string table, as TensorFlow's *.index is

_NO_LAYERS = "has no torch layers to convert; name the model's code: bayesify convert package.module:Net --weights FILE"

_REFUSALS: dict[Kind, str] = {
    "TorchScript": f"is a TorchScript archive, which {_NO_LAYERS}, FILE being its state_dict",
    "torch.export": "is a program of torch.export, a model and no file of weights: convert it itself",
    "numpy": f"holds numpy arrays and {_NO_LAYERS}, FILE being a torch state_dict",
    "HDF5": f"is an HDF5 file (Keras?), which {_NO_LAYERS}, FILE being a torch state_dict",
    "Keras": f"is a model of Keras, which {_NO_LAYERS}, FILE being a torch state_dict",
    "TensorFlow": f"is the index of a TensorFlow checkpoint, which {_NO_LAYERS}, FILE being a torch state_dict",
    "ONNX": f"is an ONNX file, which {_NO_LAYERS}, FILE being a torch state_dict",
    "GGUF": "is a GGUF file, whose weights are packed for inference; convert the folder of safetensors that it was "
    "made from: bayesify convert FOLDER",
    "zip": "is a zip file but not one of torch.save's; unpack it and give the model file that is inside",
    "torch tar": "is a tar archive: unpack it and give the model file that is inside; one that torch.save before "
    "0.1.10 wrote, open where it was written, and torch.save(model.state_dict(), FILE) there",
    "pickle": "is a plain pickle, not a file of torch.save: open it with the program that wrote it, and there "
    "torch.save(model.state_dict(), FILE), or of arrays {name: torch.from_numpy(array), ...}",
    "empty": "is empty; save or download it again",
    "folder": FOLDER,
    "text": "is a text file, not a model; is the path right?",
    "web page": "is a web page, not a model: the download went wrong; fetch the file itself",
    "git-lfs pointer": "is a git-lfs pointer, not the model itself; run `git lfs pull`",
    "truncated": "is cut off or damaged; copy, download or save it again",
    "unknown": "is not a file that torch.save or safetensors writes; is the path right?",
}
