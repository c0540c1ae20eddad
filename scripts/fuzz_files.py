"""Small files of every format that bayesify reads, changed in ways that get past checksums, for `scripts/fuzz`."""

from __future__ import annotations

import contextlib
import io
import json
import random
import time
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as safetensors_bytes

import bayesify
from bayesify.files.model_file.description import KEY, _digest
from bayesify.files.read_weights import read_weights
from tests.files.hostile_files import structures
from tests.files.made_files import as_zip, net, saved

SLOW = 2.0  # seconds of the processor
PIECES = [b"\x00", b"\xff", b"(", b"t", b"R", b"b", b"}", b"]", b"h\x00", b"\x81", b"PK\x01\x02", b"99999999", b"-1"]
VALUES = [
    None, True, -1, 0, 1 << 31, 1 << 62, 1 << 70, 1e308, float("nan"), "", "x", "../x", "\x1b[2J", "__class__", [], {},
    [[0]], [1 << 40], [[[]]], {"x": 1}, "Pow(2, 99999)", "s0**s0**s0", "aten::relu", "cpu", "meta",
    "torch.ops.aten.as_strided.default", "torch.ops.aten.empty.memory_format",
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
        safetensors_bytes(net().state_dict()),
        *(content for _, content in structures()),
        *(path.read_bytes() for path in sorted(policies)),
    ]


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
                inside[key] = source.choice(VALUES)
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


def problem(path: Path, content: bytes) -> str | None:
    """What is wrong with how a file is opened, None if nothing is."""
    path.write_bytes(content)
    begin = time.process_time()
    for call in (_open, read_weights, _read_policy):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                call(path)
        except bayesify.BayesifyError:
            pass
        except Exception as error:
            return f"{call.__name__}: {type(error).__name__}: {error}"
    seconds = time.process_time() - begin
    return f"takes {seconds:.1f} s" if seconds > SLOW + len(content) * 1e-5 else None


def _open(path: Path) -> None:
    model = bayesify.load(path)
    if not any(isinstance(module, torch.fx.GraphModule) for module in model.modules()):
        bayesify.plan(bayesify.revert(model) if isinstance(getattr(model, "kl", None), bayesify.nn.Ledger) else model)


def _read_policy(path: Path) -> None:
    bayesify.Policy.from_yaml(path)
