"""Archives of torch.export (.pt2): every payload is looked through, then the program is built from what was read here.

torch.export.load is never called: it unpickles without restriction what its restricted reader refuses.
"""

from __future__ import annotations

import io
import json
import re
import warnings
import zipfile
from collections.abc import Mapping
from math import prod
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from ...errors import FileRefusedError
from ...programs.program import Program, from_text
from ...programs.serialized.checked_text import pruned
from .file_kind import sniff
from .global_names import dotted
from .pickle_listing import Listing, MalformedPickleError, listing
from .torch_archive import SHORT, reason
from .trust import is_plain

_FORM = re.compile(
    r"archive_format|archive_version|byteorder|version|\.data/\w+|\.format_version|\.storage_alignment|extra/.*"
    r"|models/(?P<model>[^/]+)\.json|data/sample_inputs/(?P<pickle>[^/]+\.pt)"
    r"|data/(weights|constants)/(?P<config>[^/]+_config\.json|(weight|tensor)_\d+)|data/(weights|constants)/[^/]+\.pt"
    r"|serialized_(exported_program\.json|state_dict\.(pt|json)|constants\.(pt|json)|example_inputs\.pt)"
)
_CODE = re.compile(
    r"data/aotinductor/.*|.*\.(so|cpp|o|cubin|ptx)|data/constants/(custom|opaque)_obj_.*|executorch/.*|mtia.*"
)
_OTHER = re.compile(r"extra/.*|\.data/.*")  # what torch hands on as it is, to who may unpickle it
_EXPANDED = 1 << 28  # elements that a tensor may have by repeating those in the file
_PAYLOAD = re.compile(r"(weight|tensor)_\d+")


def open_program(source: str | PathLike[str] | BinaryIO, *, meta: bool = False) -> Program:
    """Open an archive of torch.export without running anything from it.

    Args:
        source: the file.
        meta: read no weights; the program's tensors are on the meta device.

    Raises:
        FileRefusedError: it is broken, names anything beyond tensors and plain values, or calls what is no operator.
        UsageError: there is no such file.
    """
    name = str(source) if isinstance(source, str | PathLike) else "the exported program"
    if isinstance(source, str | PathLike) and sniff(source).kind != "torch.export":
        raise FileRefusedError(f"{name}: {sniff(source).refusal or 'is no archive of torch.export'}")
    try:
        with zipfile.ZipFile(source) as file:
            archive = _Archive(file, Path(source).stat().st_size if isinstance(source, str | PathLike) else None)
            return from_text(archive.text(), *archive.tensors(meta))
    except FileRefusedError as error:
        raise FileRefusedError(f"{name}: {error}") from None
    except (
        zipfile.BadZipFile,
        EOFError,
        OSError,
        KeyError,
        ValueError,
        TypeError,
        AttributeError,
        RuntimeError,
    ) as error:
        raise FileRefusedError(f"{name}: {reason(error)}") from None


class _Archive:
    """The entries of one archive, by their names below its folder; all of them are looked through when it is opened."""

    def __init__(self, file: zipfile.ZipFile, size: int | None) -> None:
        self.file = file
        infos = file.infolist()
        legacy = any(info.filename == "serialized_exported_program.json" for info in infos)
        self.entries = {info.filename if legacy else info.filename.partition("/")[2]: info for info in infos}
        if len(self.entries) != len(infos) or any(info.compress_type != zipfile.ZIP_STORED for info in infos):
            raise FileRefusedError(
                "holds entries twice or compressed, as torch.export.save never writes; save it again"
            )
        if size is not None and sum(info.file_size for info in infos) > size:
            raise FileRefusedError(f"its entries claim more bytes than it has; {SHORT}")
        for name in self.entries:
            self._look_through(name)

    def _look_through(self, name: str) -> None:
        if _CODE.fullmatch(name):
            raise FileRefusedError(
                f"holds {name[:80]!r}, compiled code or an object that could run code when opened; refused"
            )
        if not _FORM.fullmatch(name):
            raise FileRefusedError(f"holds {name[:80]!r}, which torch.export.save never writes; save it again")
        if name.endswith(".pt") or (_OTHER.fullmatch(name) and self._is_pickled(name)):
            refuse_unplain(name, self.read(name))

    def _is_pickled(self, name: str) -> bool:
        with self.file.open(self.entries[name]) as content:
            return content.read(4).startswith((b"\x80", b"PK"))

    def read(self, name: str) -> bytes:
        return self.file.read(self.entries[name])

    def text(self) -> str:
        """The program, pruned. An archive with several models is asked for `model`, as torch.export.load does."""
        found = [name for name in ("models/model.json", "serialized_exported_program.json") if name in self.entries]
        if not found:
            raise FileRefusedError(
                "holds no exported program 'model'; save it again with torch.export.save(program, path)"
            )
        if "byteorder" in self.entries and self.read("byteorder").strip() != b"little":
            raise FileRefusedError("was written on a big-endian machine; export it again on this one")
        return pruned(self.read(found[0]))

    def tensors(self, meta: bool) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The program's Parameters and buffers, and its constants."""
        return self._group("weights", "state_dict", meta), self._group("constants", "constants", meta)

    def _group(self, folder: str, legacy: str, meta: bool) -> dict[str, Tensor]:
        for name in (f"data/{folder}/model.pt", f"serialized_{legacy}.pt", f"serialized_{legacy}.json"):
            if name in self.entries:
                return _unpickled(name, self.read(name), meta)
        config = json.loads(self.read(f"data/{folder}/model_{folder}_config.json"))["config"]
        shared: dict[Any, Tensor] = {}
        found = {}
        for name, payload in config.items():
            key = json.dumps(payload, sort_keys=True)
            if key not in shared:
                shared[key] = self._tensor(f"data/{folder}", payload, meta)
            found[name] = shared[key]
        return found

    def _tensor(self, folder: str, payload: Mapping[str, Any], meta: bool) -> Tensor:
        path = payload["path_name"]
        if not _PAYLOAD.fullmatch(path):
            raise FileRefusedError(f"has a tensor at {path[:80]!r}, where torch.export.save puts none; refused")
        content = self.read(f"{folder}/{path}")
        if payload["use_pickle"]:
            refuse_unplain(path, content)
            tensor = _load(content, meta)
        else:
            tensor = _strided(payload["tensor_meta"], content, meta)
        grad = bool((payload["tensor_meta"] or {}).get("requires_grad"))
        return nn.Parameter(tensor, requires_grad=grad) if payload["is_param"] else tensor


def refuse_unplain(name: str, content: bytes) -> None:
    """Refuse a pickled payload that names anything beyond tensors and plain values.

    Raises:
        FileRefusedError: it does.
    """
    if not content:
        return
    for found in _listings(name, content):
        foreign = [each for each in found.names if not is_plain(each)]
        if foreign or found.strange:
            what = dotted(foreign[:10]) or "data outside the file"
            raise FileRefusedError(f"its {name} names {what}, which could run code when opened; refused")


def _listings(name: str, content: bytes) -> list[Listing]:
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as inner:
            pickles = [entry for entry in inner.namelist() if entry.endswith(".pkl")]
            if len(pickles) != 1 or any("/code/" in entry for entry in inner.namelist()):
                raise FileRefusedError(f"its {name} is no plain file of torch.save; refused")
            return [listing(inner.read(pickles[0]))]
    except (zipfile.BadZipFile, MalformedPickleError, KeyError, RuntimeError, NotImplementedError):
        raise FileRefusedError(f"its {name} is damaged, or no plain file of torch.save; refused") from None


def _load(content: bytes, meta: bool) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.load(io.BytesIO(content), map_location="meta" if meta else "cpu", weights_only=True)


def _unpickled(name: str, content: bytes, meta: bool) -> dict[str, Tensor]:
    found = _load(content, meta) if content else {}
    if not isinstance(found, Mapping) or not all(isinstance(each, Tensor) for each in found.values()):
        raise FileRefusedError(f"its {name} holds something else than tensors; save it again")
    return dict(found)


def _strided(form: Mapping[str, Any], content: bytes, meta: bool) -> Tensor:
    from torch._export.serde.serialize import deserialize_scalar_type

    dtype = deserialize_scalar_type(form["dtype"])
    sizes, strides = ([int(each["as_int"]) for each in form[part]] for part in ("sizes", "strides"))
    offset, held = int(form["storage_offset"]["as_int"]), len(content) // dtype.itemsize
    reach = offset + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True)) + 1
    full = prod(sizes) > 0
    if min([offset, *sizes, *strides]) < 0 or (full and reach > held) or prod(sizes) > max(held, _EXPANDED):
        raise FileRefusedError(f"has a tensor of sizes {str(sizes)[:80]} in {len(content)} bytes; save it again")
    if meta:
        return torch.empty_strided(sizes, strides, dtype=dtype, device="meta")
    flat = torch.frombuffer(bytearray(content), dtype=dtype) if content else torch.empty(0, dtype=dtype)
    return flat.as_strided(sizes, strides, offset)
