"""Which files hold the weights: one, or the shards that an index names; and where those of a folder are."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import FileRefusedError, UsageError
from .json_file import read_json
from .untrusted.content import SHORT

INDEX = ".index.json"  # as in model.safetensors.index.json
RECORD, SCALES = "bayesify.json", "bayesify.safetensors"  # what makes a folder a converted model


@dataclass(frozen=True)
class WeightFiles:
    """The files of one set of weights.

    Attributes:
        names: of each file, the names of the tensors that it must hold; None where nothing says so.
        note: for the report, what was chosen.
    """

    names: Mapping[Path, frozenset[str] | None]
    note: str


def is_index(path: Path) -> bool:
    """Whether this is an index of shards, by its name: what it holds is checked where it is read."""
    return path.name.endswith(INDEX)


def shards_of(index: Path) -> WeightFiles:
    """The shards that an index names, all of them beside it.

    Raises:
        FileRefusedError: it is not such an index, or names what does not lie beside it.
    """
    table = read_json(index).get("weight_map")
    if not isinstance(table, dict) or not table or not all(isinstance(file, str) for file in table.values()):
        raise FileRefusedError(f"{index}: has no `weight_map` of tensors and their files; {SHORT}")
    names: dict[str, set[str]] = {}
    for tensor, file in table.items():
        names.setdefault(file, set()).add(tensor)
    for file in names:
        _refuse_elsewhere(index, file)
    found = {index.parent / file: frozenset(tensors) for file, tensors in sorted(names.items())}
    return WeightFiles(found, f"joined {len(found)} shards by {index.name}")


def weights_in_folder(folder: Path) -> WeightFiles:
    """The weights of a folder, as transformers, diffusers, peft, timm and accelerate name them.

    Raises:
        FileRefusedError: there are none, or several that could be meant.
    """
    files = sorted(entry.name for entry in os.scandir(folder) if entry.is_file() and entry.name != SCALES)
    for usual in _USUAL:
        if usual in files:
            return _chosen(folder / usual)
    for ending in (f".safetensors{INDEX}", ".safetensors", f".bin{INDEX}"):
        found = [name for name in files if name.endswith(ending)]
        if len(found) == 1:
            return _chosen(folder / found[0])
        if found:
            raise FileRefusedError(
                f"{folder}: has several files of weights: {', '.join(found[:5])}; name one: --weights FILE"
            )
    raise FileRefusedError(f"{folder}: {_none(files)}")


def refuse_other_folder(target: Path) -> None:
    """Refuse to write a folder where something else is than nothing, or a folder of ours.

    Raises:
        UsageError: there is.
    """
    if target.exists() and not target.is_dir():
        raise UsageError(f"{target}: is a file; name a folder")
    if target.is_dir() and os.listdir(target) and not (target / RECORD).is_file():
        raise UsageError(f"{target}: is a folder with other things in it, which is never replaced; name another one")


def _chosen(path: Path) -> WeightFiles:
    return shards_of(path) if is_index(path) else WeightFiles({path: None}, f"took the weights in {path.name}")


_USUAL = (
    "model.safetensors", "model.safetensors.index.json", "adapter_model.safetensors",
    "pytorch_model.bin", "pytorch_model.bin.index.json", "adapter_model.bin",
)  # fmt: skip


def _refuse_elsewhere(index: Path, file: str) -> None:
    """A shard is a plain name beside its index: a path could name any file of the machine."""
    if not file or file != os.path.basename(file) or file in (".", "..") or "\\" in file or "\0" in file:
        raise FileRefusedError(f"{index}: names the shard {file[:80]!r}, which does not lie beside it")
    if not os.path.lexists(index.parent / file):
        raise FileRefusedError(f"{index}: names the shard {file!r}, which is not there; fetch or save them all")


def _none(files: list[str]) -> str:
    for ending, (what, remedy) in _OTHERS.items():
        found = next((name for name in files if name.endswith(ending)), None)
        if found is not None:
            return f"has only {found}, weights of {what}: {remedy}"
    shown = f"it has {', '.join(files[:5])}{', ...' if len(files) > 5 else ''}" if files else "it has no files"
    return f"is a folder without weights ({shown}); name a file, or one with model.safetensors or pytorch_model.bin"


_OTHERS: dict[str, Any] = {
    "tf_model.h5": ("TensorFlow", "open it with transformers 4, from_pretrained(FOLDER, from_tf=True), and "
                    "save_pretrained(NEW) there"),
    "flax_model.msgpack": ("Flax", "open it with transformers 4, from_pretrained(FOLDER, from_flax=True), and "
                           "save_pretrained(NEW) there"),
    ".ckpt.index": ("TensorFlow", "convert them with the program that wrote them, and save a torch state_dict"),
    "saved_model.pb": ("TensorFlow", "convert them with the program that wrote them, and save a torch state_dict"),
    ".gguf": ("GGUF", "get the model's safetensors files, which GGUF files are made from"),
    ".onnx": ("ONNX", "get the torch weights that it was exported from"),
    ".distcp": ("torch.distributed.checkpoint", "join them: python -m torch.distributed.checkpoint.format_utils "
                "dcp_to_torch FOLDER FILE"),
    "MLmodel": ("MLflow", "name the file inside, FOLDER/data/model.pth"),
}  # fmt: skip
