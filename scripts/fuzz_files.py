"""Small files of every format that bayesify reads, changed in ways that get past checksums, for `scripts/fuzz`."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import io
import json
import random
import shutil
import time
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save as safetensors_bytes

import bayesify
from bayesify.cli.batch_files import read_batch
from bayesify.files.model_file.description import KEY, _digest
from bayesify.files.model_folder.record import _digest as _digest_of_record
from bayesify.files.read_weights import read_weights
from bayesify.files.weight_files import RECORD, SCALES
from tests.conftest import load_torchvision
from tests.files.folders import gpt
from tests.files.hostile_files import structures
from tests.files.made_files import as_zip, net, saved

SLOW = 4.0  # seconds of the processor: what does not end takes minutes on any
FOLDER = "folder/"  # a folder is fuzzed as a zip file whose entries are in this one
PIECES = [b"\x00", b"\xff", b"(", b"t", b"R", b"b", b"}", b"]", b"h\x00", b"\x81", b"PK\x01\x02", b"99999999", b"-1"]
VALUES = [
    None, True, -1, 0, 1 << 31, 1 << 62, 1 << 70, 1e308, float("nan"), "", "x", "../x", "\x1b[2J", "__class__", [], {},
    [[0]], [1 << 40], [[[]]], {"x": 1}, "Pow(2, 99999)", "s0**s0**s0", "aten::relu", "cpu", "meta",
    "torch.ops.aten.as_strided.default", "torch.ops.aten.empty.memory_format",
    "model.safetensors", "bayesify.safetensors", "../own0", "bert", "hf-hub:x/y",
]  # fmt: skip


def corpus(folder: Path) -> list[bytes]:
    """Small files of each format, and policies."""
    models = (bayesify.convert(net()), bayesify.convert(torch.nn.LSTM(2, 2), "lrt"))
    for number, model in enumerate(models):
        bayesify.save(model, folder / f"own{number}")
    dynamic = {"input": {0: torch.export.Dim("n")}}
    program = torch.export.export(net().eval(), (torch.randn(2, 4),), dynamic_shapes=dynamic)
    torch.export.save(program, folder / "program")
    bayesify.save(bayesify.convert(program), folder / "converted program")
    files = [saved(what, old) for what in (net(), net().state_dict(), {"model": net()}) for old in (False, True)]
    files += [path.read_bytes() for path in sorted(folder.iterdir())]
    policies = Path(__file__).resolve().parents[1].glob("configs/*.yaml")
    return [
        *files,
        *_folders(folder / "folders"),
        *_batches(),
        safetensors_bytes(net().state_dict()),
        *(content for _, content in structures()),
        *(path.read_bytes() for path in sorted(policies)),
    ]


def _folders(place: Path) -> Iterator[bytes]:
    """Shards with their index; a folder of transformers, plain and converted."""
    load_torchvision()
    place.mkdir()
    tensors = net().state_dict()
    parts = {f"{number}.safetensors": dict(list(tensors.items())[number::2]) for number in range(2)}
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    files = {file: safetensors_bytes(part) for file, part in parts.items()}
    yield as_folder({**files, "model.safetensors.index.json": json.dumps(index).encode()})
    for name, model in (("plain", gpt()), ("converted", bayesify.convert(gpt()))):
        bayesify.save(model, f"{place / name}/")
        yield as_folder({path.name: path.read_bytes() for path in (place / name).iterdir()})


def _batches() -> Iterator[bytes]:
    """Inputs of a model."""
    for save in (np.savez, np.savez_compressed):
        buffer = io.BytesIO()
        save(buffer, x=np.ones((2, 3), np.float32), y=np.arange(2))
        yield buffer.getvalue()
    yield b"a,b\n1,2\n3,4e5\n"


def as_folder(files: Mapping[str, bytes]) -> bytes:
    """A folder's files as one content."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, data in files.items():
            file.writestr(FOLDER + name, data)
    return buffer.getvalue()


def files_of(content: bytes) -> dict[str, bytes] | None:
    """The files of a content that is a folder's."""
    with contextlib.suppress(Exception), zipfile.ZipFile(io.BytesIO(content)) as file:
        if all(name.startswith(FOLDER) for name in file.namelist()):
            return {name.rpartition("/")[2] or "x": file.read(name) for name in file.namelist()}
    return None


def changed_file(content: bytes, others: list[bytes], source: random.Random) -> bytes:
    """A changed copy; most often only a part behind checksums is, which are made right again."""
    if source.randrange(6):
        with contextlib.suppress(Exception):  # a changed file is often of its form by its first bytes alone
            if content.startswith(b"PK"):
                return _changed_zip(content, others, source)
            if content[8:9] == b"{":
                return _changed_header(content, source)
    return changed_bytes(content, others, source)


def changed_bytes(content: bytes, others: list[bytes], source: random.Random) -> bytes:
    """A copy with a few bytes flipped, cut, repeated, replaced by pieces, or joined with another file's."""
    data = bytearray(content)
    for _ in range(source.choice((1, 1, 2, 4, 8))):
        at, size = source.randrange(len(data) + 1), source.randrange(1, 16)
        match source.randrange(5):
            case 0:
                data[at : at + 1] = bytes([source.randrange(256)])
            case 1:
                del data[at : at + size]
            case 2:
                data[at:at] = data[at : at + size]
            case 3:
                data[at : at + source.randrange(3)] = source.choice(PIECES)
            case 4:
                other = source.choice(others) or b"x"
                begin = source.randrange(len(other))
                data[at : at + size] = other[begin : begin + size]
    return bytes(data)


def _changed_zip(content: bytes, others: list[bytes], source: random.Random) -> bytes:
    folder = files_of(content)
    if folder:
        return as_folder(_changed_folder(folder, others, source))
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        parts = {name: file.read(name) for name in file.namelist()}
    texts = [name for name in parts if name.endswith(".json")]
    inside = {name.partition("/")[2]: data for name, data in parts.items()}
    if not texts and "data.pkl" in inside:
        weights = {name: data for name, data in inside.items() if name.startswith("data/")}
        return as_zip(changed_bytes(inside["data.pkl"], others, source), weights)
    name = source.choice(texts or list(parts) or [""])
    parts[name] = _changed_text(parts.get(name, b""), others, source)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for entry, data in parts.items():
            file.writestr(entry, data)
    return buffer.getvalue()


def _changed_folder(files: dict[str, bytes], others: list[bytes], source: random.Random) -> dict[str, bytes]:
    """With one file changed, most often a JSON; where the folder is a converted model, its record holds for it."""
    texts = [name for name in files if name.endswith(".json")]
    name = source.choice(texts if texts and source.randrange(4) else list(files))
    changed = _changed_text(files[name], others, source) if name in texts else changed_file(files[name], others, source)
    files = {**files, name: changed}
    with contextlib.suppress(Exception):
        record = json.loads(files[RECORD])
        record["files"] = {named: hashlib.sha256(files[named]).hexdigest() for named in record["files"]}
        if name == SCALES:
            record["apart"] = _entries(files[SCALES])
        record.pop("sha256", None)
        files[RECORD] = json.dumps({**record, "sha256": _digest_of_record(record)}).encode()
    return files


def _entries(content: bytes) -> dict[str, Any]:
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return {name: entry for name, entry in header.items() if name != "__metadata__"}


def _changed_text(text: bytes, others: list[bytes], source: random.Random) -> bytes:
    try:
        return json.dumps(_changed_value(json.loads(text), source)).encode()
    except (ValueError, RecursionError):
        return changed_bytes(text, others, source)


def _changed_header(content: bytes, source: random.Random) -> bytes:
    """Of safetensors: with another header; of a file of ours with another description, under a right digest."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    metadata = header.get("__metadata__", {})
    if KEY in metadata and source.randrange(4):
        entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
        text = json.dumps(_changed_value(json.loads(metadata[KEY]), source))
        header["__metadata__"] = {KEY: text, "sha256": _digest(text, entries)}
    else:
        header = _changed_value(header, source)
    written = json.dumps(header).encode()
    return len(written).to_bytes(8, "little") + written + content[8 + length :]


def _changed_value(value: Any, source: random.Random) -> Any:
    """JSON with one to three of its values replaced, removed, doubled or moved."""
    holder = [value]
    for _ in range(source.choice((1, 1, 2, 3))):
        places = list(_places(holder))
        inside, key = source.choice(places)
        match source.randrange(4):
            case 0 | 1:
                inside[key] = copy.deepcopy(source.choice(VALUES))
            case 2:
                other, place = source.choice(places)
                inside[key] = json.loads(json.dumps(other[place]))
            case 3 if inside is not holder:
                if isinstance(inside, list):
                    inside.insert(key, inside[key]) if source.randrange(2) else inside.pop(key)
                else:
                    inside.pop(key)
    return holder[0]


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    waiting = [value]
    while waiting:
        inside = waiting.pop()
        for key in list(inside) if isinstance(inside, dict) else range(len(inside)):
            yield inside, key
            if isinstance(inside[key], dict | list):
                waiting.append(inside[key])


def problem(place: Path, content: bytes) -> str | None:
    """What is wrong with how a file is opened, None if nothing is.

    Args:
        place: a folder for it.
        content: the file; or the files of a folder, as `as_folder` writes them.
    """
    path, limit = _put(place, content), SLOW + len(content) * 1e-5
    found, seconds = _timed(path)
    if found is None and seconds > limit:
        found, seconds = _timed(path)  # the first file of its kind imports a library
    return f"takes {seconds:.1f} s" if found is None and seconds > limit else found


def _timed(path: Path) -> tuple[str | None, float]:
    """What is wrong, and the seconds that it took."""
    begin = time.process_time()
    for call in (_open, read_weights, *(() if path.is_dir() else (_read_policy, _read_inputs))):
        try:
            with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
                warnings.simplefilter("ignore")
                call(path)
        except bayesify.BayesifyError:
            pass
        except Exception as error:
            return f"{call.__name__}: {type(error).__name__}: {error}", 0.0
    return None, time.process_time() - begin


def kind(text: str) -> str:
    """Problems that differ in numbers alone are one."""
    return "".join(letter for letter in text[:60] if not letter.isdigit())


def _put(place: Path, content: bytes) -> Path:
    """The content as a file or a folder."""
    files = files_of(content)
    if not files:
        path = place / "changed.pt"
        path.write_bytes(content)
        return path
    folder = place / "changed"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, data in files.items():
        if name not in (".", "..") and "\0" not in name:
            (folder / name[:200]).write_bytes(data)
    return folder


def _open(path: Path) -> None:
    with contextlib.suppress(bayesify.BayesifyError):
        bayesify.load(path, into=net())
    model = bayesify.load(path)
    if not any(isinstance(module, torch.fx.GraphModule) for module in model.modules()):
        bayesify.plan(bayesify.revert(model) if isinstance(getattr(model, "kl", None), bayesify.nn.Ledger) else model)


def _read_policy(path: Path) -> None:
    bayesify.Policy.from_yaml(path)


def _read_inputs(path: Path) -> None:
    head = path.read_bytes()[:2]
    ending = ".npz" if head == b"PK" else ".csv" if head.isascii() else ".safetensors"
    inputs = path.with_suffix(ending)
    shutil.copyfile(path, inputs)
    read_batch(str(inputs), torch.float32)
