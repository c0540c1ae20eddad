"""Fixtures of the tests of bayesify.files."""

import contextlib
import importlib
import os
import sys

import pytest
import torch
from torch.export import Dim, export

from tests.files.edited_archives import Net


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
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    packages = Packages(tmp_path)
    yield packages
    packages.forget()


@pytest.fixture
def marker(tmp_path):
    """A path that planted code would create, and the shell command for it."""
    path = tmp_path / "pwned"
    yield path, f"touch {path}"
    assert not os.path.exists(path), "code from the file ran"


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    path = tmp_path_factory.mktemp("pt2") / "net.pt2"
    batch = Dim("batch", min=1)
    program = export(
        Net(), (torch.randn(4, 3),), {"shift": torch.zeros(2)}, dynamic_shapes={"x": {0: batch}, "shift": None}
    )
    torch.export.save(program, path)
    return path
