"""Files for the tests of bayesify.io: trained-looking models, and pickles that no pickler of torch would write."""

import contextlib
import importlib
import importlib.util
import io
import os
import pathlib
import pickle
import struct
import sys
import zipfile

import pytest
import torch
from torch import nn

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


def edit_pickle(content: bytes, old: bytes, new: bytes) -> bytes:
    """The same zipped file with its pickle changed."""
    source, buffer = zipfile.ZipFile(io.BytesIO(content)), io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name in source.namelist():
            data = source.read(name)
            if name.endswith("data.pkl"):
                assert old in data
                data = data.replace(old, new)
            file.writestr(name, data)
    return buffer.getvalue()


def safetensors_bytes(header: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + data


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 2))


@pytest.fixture(scope="session")
def vision():
    """torchvision, also where its compiled operators don't fit the torch at hand: its models need their names only."""
    found = importlib.util.find_spec("torchvision")
    if found is None:
        pytest.skip("torchvision is not installed")
    try:
        for library in pathlib.Path(found.origin).parent.glob("_C*.so"):
            torch.ops.load_library(library)
    except OSError:
        LIBRARIES.append(torch.library.Library("torchvision", "DEF"))
        for name in ("nms", "qnms"):
            LIBRARIES[-1].define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return importlib.import_module("torchvision")


LIBRARIES = []  # a library's operators are gone with it


@pytest.fixture
def file(tmp_path):
    """`file(bytes)` -> a path that holds them, under a name that says nothing."""

    def write(content: bytes, name: str = "thing.bin"):
        path = tmp_path / name
        path.write_bytes(content)
        return path

    return write


class Packages:
    """Packages in the current directory, which is not on sys.path."""

    def __init__(self, folder):
        self.folder = folder

    def write(self, name: str, source: str) -> None:
        (self.folder / name).mkdir()
        (self.folder / name / "__init__.py").write_text("")
        (self.folder / name / "models.py").write_text(source)

    @contextlib.contextmanager
    def imported(self, name: str):
        """`name.models`, forgotten at the end."""
        sys.path.insert(0, str(self.folder))
        try:
            yield importlib.import_module(f"{name}.models")
        finally:
            sys.path.remove(str(self.folder))
            self.forget()

    def forget(self) -> None:
        for name, module in list(sys.modules.items()):
            if str(self.folder) in str(getattr(module, "__file__", "")):
                del sys.modules[name]


@pytest.fixture
def package(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [each for each in sys.path if each])
    packages = Packages(tmp_path)
    yield packages
    packages.forget()


@pytest.fixture
def marker(tmp_path):
    """A path that planted code would create, and the shell command for it."""
    path = tmp_path / "pwned"
    yield path, f"touch {path}"
    assert not os.path.exists(path), "code from the file ran"
