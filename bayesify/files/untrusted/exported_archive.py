"""Archives of torch.export (.pt2): every payload is looked through, then the program is built from what was read here.

torch.export.load is never called: it unpickles without restriction what its restricted reader refuses.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from os import PathLike
from typing import Any

import torch
from torch import Tensor

from ...errors import FileRefusedError
from ...programs.program import Program, from_text
from ...programs.serialized.checked_text import pruned
from .byte_stream import MalformedPickleError
from .content import Content, opened
from .file_kind import kind_of
from .global_names import Name, dotted
from .node_limits import refuse_unfolding
from .pickle_reader import read_pickle
from .placeholders import WeightsBuilder, torch_constant
from .storages import Storages
from .tensors import Tensors, parameter
from .torch_archive import open_archive
from .zip_directory import ZipDirectory

_FORM = re.compile(
    r"archive_format|archive_version|byteorder|version|\.data/\w+|\.format_version|\.storage_alignment|extra/.*"
    r"|models/(?P<model>[^/]+)\.json|data/sample_inputs/(?P<pickle>[^/]+\.pt)"
    r"|data/(weights|constants)/(?P<config>[^/]+_config\.json|(weight|tensor)_\d+)|data/(weights|constants)/[^/]+\.pt"
    r"|serialized_(exported_program\.json|state_dict\.pt|constants\.pt|example_inputs\.pt)"
)
_CODE = re.compile(
    r"data/aotinductor/.*|.*\.(so|cpp|o|cubin|ptx)|data/constants/(custom|opaque)_obj_.*|executorch/.*|mtia.*"
)
_OTHER = re.compile(r"extra/.*|\.data/.*")  # what torch hands on as it is, to who may unpickle it
_PAYLOAD = re.compile(r"(weight|tensor)_\d+")


def open_program(path: str | PathLike[str], *, meta: bool = False) -> Program:
    """Open an archive of torch.export without running anything from it.

    Args:
        path: the file.
        meta: read no weights; the program's tensors are on the meta device.

    Raises:
        FileRefusedError: it is broken, names more than tensors and plain values, or calls what is not an operator.
        UsageError: there is no such file.
    """
    with opened(path) as content:
        kind = kind_of(content)
        if kind.kind != "torch.export":
            raise FileRefusedError(kind.refusal or "is not an archive of torch.export")
        return program_in(content, meta=meta)


def program_in(content: Content, *, meta: bool) -> Program:
    """As `open_program`, out of a file that is open."""
    archive = _Archive(ZipDirectory(content), meta)
    try:
        return from_text(archive.text(), *archive.tensors())
    except FileRefusedError:
        raise
    except (KeyError, ValueError, TypeError, AttributeError, IndexError, RuntimeError) as error:
        raise FileRefusedError(_unreadable(error)) from None


class _Archive:
    """The entries of one archive, by their names below its folder; all of them are looked through when it is opened."""

    def __init__(self, directory: ZipDirectory, meta: bool) -> None:
        self.directory, self.meta = directory, meta
        legacy = "serialized_exported_program.json" in directory.members
        self.names = {name if legacy else name.partition("/")[2]: name for name in directory.members}
        if len(self.names) != len(directory.members):
            raise FileRefusedError("holds entries twice, as torch.export.save never writes; save it again")
        for name in self.names:
            self._look_through(name)

    def _look_through(self, name: str) -> None:
        """Refuse an entry that the format has not, or that is damaged. Only those that are read here have a meaning."""
        if _CODE.fullmatch(name):
            raise FileRefusedError(
                f"holds {name[:80]!r}, compiled code or an object that could run code when opened; refused"
            )
        if not _FORM.fullmatch(name):
            raise FileRefusedError(f"holds {name[:80]!r}, which torch.export.save never writes; save it again")
        member = self.directory.stored(self.names[name])
        if not self.meta or not _PAYLOAD.fullmatch(name.rpartition("/")[2]):
            self.directory.verify(member.name)
        if name.endswith(".pt") or _OTHER.fullmatch(name):
            refuse_unplain(name, self.part(name))

    def part(self, name: str) -> Content:
        """An entry as a content of its own."""
        member = self.directory.stored(self.names[name])
        return self.directory.content.part(member.start, member.size)

    def read(self, name: str) -> bytes:
        """An entry's bytes."""
        return self.directory.read(self.names[name])

    def text(self) -> str:
        """The program, pruned. An archive with several models is asked for `model`, as torch.export.load does."""
        names = [name for name in ("models/model.json", "serialized_exported_program.json") if name in self.names]
        if not names:
            raise FileRefusedError(
                "holds no exported program 'model'; save it again with torch.export.save(program, path)"
            )
        if "byteorder" in self.names and self.read("byteorder").strip() != b"little":
            raise FileRefusedError("was written on a big-endian machine; export it again on this one")
        return pruned(self.read(names[0]))

    def tensors(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The program's Parameters and buffers, and its constants."""
        return self._group("weights", "state_dict"), self._group("constants", "constants")

    def _group(self, folder: str, legacy: str) -> dict[str, Tensor]:
        for name in (f"data/{folder}/model.pt", f"serialized_{legacy}.pt"):
            if name in self.names:
                return _unpickled(name, self.part(name), self.meta)
        config = json.loads(self.read(f"data/{folder}/model_{folder}_config.json"))["config"]
        paths = [f"data/{folder}/{_payload(payload)}" for payload in config.values()]
        files = {path: self.directory.stored(self.names[path]).size for path in paths if path in self.names}
        raw = Storages(files, lambda path, buffer: self.directory.read_into(self.names[path], buffer), meta=self.meta)
        made, shared, tensors = Tensors(raw), {}, {}
        for (name, payload), path in zip(config.items(), paths, strict=True):
            key = json.dumps(payload, sort_keys=True)
            if key not in shared:
                shared[key] = self._tensor(path, payload, made)
            tensors[name] = shared[key]
        return tensors

    def _tensor(self, path: str, payload: Mapping[str, Any], made: Tensors) -> Tensor:
        form = payload["tensor_meta"]
        if payload["use_pickle"]:
            refuse_unplain(path, self.part(path))
            tensor = _load(self.part(path), self.meta)
            if not isinstance(tensor, Tensor):
                raise FileRefusedError(f"its {path} holds a {type(tensor).__name__}, not a tensor; save it again")
        else:
            memory = made.storages.bytes_of(path)
            sizes, strides = (tuple(int(size["as_int"]) for size in form[part]) for part in ("sizes", "strides"))
            tensor = made.strided(memory, int(form["storage_offset"]["as_int"]), sizes, strides, _dtype(form))
        if not payload["is_param"]:
            return tensor
        return parameter(tensor, bool((form or {}).get("requires_grad")))


def _payload(payload: Mapping[str, Any]) -> str:
    path = payload["path_name"]
    if not _PAYLOAD.fullmatch(path):
        raise FileRefusedError(f"has a tensor at {path[:80]!r}, where torch.export.save puts none; refused")
    return str(path)


def _dtype(form: Mapping[str, Any]) -> torch.dtype:
    from torch._export.serde.serialize import deserialize_scalar_type

    return deserialize_scalar_type(form["dtype"])


def refuse_unplain(name: str, content: Content) -> None:
    """Refuse a pickled payload that names anything beyond tensors and plain values.

    Raises:
        FileRefusedError: it does.
    """
    head = content.read(0, min(4, content.size))
    if not head.startswith((b"\x80", b"PK")):
        return
    try:
        pickle = open_archive(content, "torch zip", meta=True).pickle if head[:2] == b"PK" else read_pickle(content)
        foreign = [name for name in pickle.names if not _is_plain(name)]
    except (FileRefusedError, MalformedPickleError):
        raise FileRefusedError(f"its {name} is damaged, or not a plain file of torch.save; refused") from None
    if foreign:
        raise FileRefusedError(f"its {name} names {dotted(foreign[:10])}, which could run code when opened; refused")


def _is_plain(name: Name) -> bool:
    storage = name.module in ("torch", "torch.storage") and name.qualname.endswith("Storage")
    known = str(name) in WeightsBuilder.rules or str(name) == "torch.Tensor"
    return storage or known or torch_constant(name) is not None


def _load(content: Content, meta: bool) -> Any:
    archive = open_archive(content, "torch zip", meta=meta)
    refuse_unfolding(archive.pickle.root)
    return WeightsBuilder(archive.storages).value(archive.pickle.root)


def _unpickled(name: str, content: Content, meta: bool) -> dict[str, Tensor]:
    loaded = _load(content, meta) if content.size else {}
    if not isinstance(loaded, Mapping) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise FileRefusedError(f"its {name} holds something else than tensors; save it again")
    return dict(loaded)


def _unreadable(error: Exception) -> str:
    """Why a program could not be read, in one line."""
    first = re.sub(r"\x1b\[\d*m", "", str(error)).strip().split("\n", 1)[0]
    return f"cannot be read ({first[:160]}); the file is damaged, or was written by other versions of its libraries"
