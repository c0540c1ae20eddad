"""A file is written whole or not at all, whatever happens meanwhile."""

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from torch import nn

import bayesify
from bayesify.cli.terminal import ended_as_by_an_error
from bayesify.errors import UsageError
from bayesify.files import whole_file as module
from bayesify.files.whole_file import whole_file
from tests.files.made_files import net


@pytest.fixture(params=["nameless", "named", "no links"])
def system(request, monkeypatch):
    """A system with files that have no name, one without, and one without hard links."""
    if request.param != "nameless":
        monkeypatch.delattr(os, "O_TMPFILE", raising=False)
    if request.param == "no links":

        def link(*_, **__):
            raise OSError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr(os, "link", link)
    return request.param


def write(path: Path, content: bytes = b"new", overwrite: bool = True) -> None:
    with whole_file(path, overwrite=overwrite) as file:
        file.write(content)


def test_a_file_appears_when_it_is_complete(system, tmp_path):
    path = tmp_path / "m.pt"
    with whole_file(path, overwrite=False) as file:
        file.write(b"half")
        assert not path.exists()
        file.write(b"whole")
    assert path.read_bytes() == b"halfwhole"
    assert os.listdir(tmp_path) == ["m.pt"]


def test_a_failure_leaves_the_older_file_and_nothing_else(system, tmp_path):
    path = tmp_path / "m.pt"
    path.write_bytes(b"old")

    def interrupted():
        with whole_file(path, overwrite=True) as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["m.pt"]


@pytest.mark.parametrize("kind", ["file", "link", "dangling link"])
def test_what_appeared_meanwhile_is_neither_replaced_nor_followed(kind, system, tmp_path):
    path, source = tmp_path / "m.pt", tmp_path / "source.pt"
    source.write_bytes(b"source")

    def overtaken():
        with whole_file(path, overwrite=False) as file:
            file.write(b"new")
            if kind == "file":
                path.write_bytes(b"other")
            else:
                path.symlink_to(source if kind == "link" else tmp_path / "none")

    with pytest.raises(FileExistsError):
        overtaken()
    assert source.read_bytes() == b"source"
    assert sorted(os.listdir(tmp_path)) == ["m.pt", "source.pt"]


def test_a_link_that_appeared_is_replaced_and_its_target_stays(system, tmp_path):
    path, source = tmp_path / "m.pt", tmp_path / "source.pt"
    source.write_bytes(b"source")
    with whole_file(path, overwrite=True) as file:
        file.write(b"new")
        path.symlink_to(source)
    assert (path.read_bytes(), source.read_bytes()) == (b"new", b"source")


def test_permissions_are_those_of_the_older_file_or_of_any_new_one(system, tmp_path):
    old = os.umask(0o027)
    try:
        write(tmp_path / "new.pt")
        write(tmp_path / "kept.pt")
        os.chmod(tmp_path / "kept.pt", 0o600)
        write(tmp_path / "kept.pt")
    finally:
        os.umask(old)
    assert (tmp_path / "new.pt").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "kept.pt").stat().st_mode & 0o777 == 0o600


def test_leftovers_of_others_do_not_matter(system, tmp_path):
    for number in range(3):
        (tmp_path / f".m.pt.{number}.tmp").write_bytes(b"left")
        (tmp_path / f".m.pt.{os.getpid()}.tmp").write_bytes(b"left")
    write(tmp_path / "m.pt")
    assert (tmp_path / "m.pt").read_bytes() == b"new"


def test_a_name_as_long_as_the_system_allows(system, tmp_path):
    write(tmp_path / ("ü" * 120 + "x" * 15))
    with pytest.raises(OSError, match="name too long"):
        write(tmp_path / ("x" * 256))


def test_two_writers_leave_one_whole_file(system, tmp_path):
    path = tmp_path / "m.pt"
    contents = [bytes([number]) * 200_000 for number in range(8)]
    threads = [threading.Thread(target=write, args=(path, content)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_bytes() in contents
    assert os.listdir(tmp_path) == ["m.pt"]


WRITER = """
import sys, pathlib
from bayesify.files.whole_file import whole_file
path = pathlib.Path(sys.argv[1])
print("ready", flush=True)
while True:
    with whole_file(path, overwrite=True) as file:
        for _ in range(64):
            file.write(b"x" * 4096)
"""


@pytest.mark.skipif(not hasattr(os, "O_TMPFILE"), reason="a system without nameless files")
@pytest.mark.parametrize("kill", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_writer_leaves_a_whole_file_and_next_to_nothing_else(kill, tmp_path):
    root = Path(bayesify.__file__).parents[1]
    left = 0
    for number in range(10):
        command = [sys.executable, "-c", WRITER, str(tmp_path / "m.pt")]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(root)})
        process.stdout.readline()
        time.sleep(0.05 + 0.013 * number)
        process.send_signal(kill)
        process.wait()
        assert (tmp_path / "m.pt").stat().st_size == 64 * 4096
        left += len(os.listdir(tmp_path)) - 1 - left
    assert left <= 2  # only between its first name and its last does a file have one that nobody knows


def test_sigterm_leaves_nothing_behind_under_the_command(system, tmp_path):
    path = tmp_path / "m.pt"
    path.write_bytes(b"old")
    before = signal.getsignal(signal.SIGTERM)

    def ended_half_way():
        with ended_as_by_an_error(), whole_file(path, overwrite=True) as file:
            file.write(b"half")
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)

    with pytest.raises(SystemExit) as ended:
        ended_half_way()
    assert ended.value.code == 128 + signal.SIGTERM
    assert (path.read_bytes(), os.listdir(tmp_path)) == (b"old", ["m.pt"])
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize("converted", [False, True])
def test_a_full_disk_is_named_and_the_older_file_stays(converted, tmp_path):
    resource = pytest.importorskip("resource")
    model, path = nn.Linear(300, 300), tmp_path / "m.pt"
    model = bayesify.convert(model) if converted else model
    path.write_bytes(b"old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 17, before[1]))
    try:
        with pytest.raises(UsageError, match="File too large"):
            bayesify.save(model, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (path.read_bytes(), os.listdir(tmp_path)) == (b"old", ["m.pt"])


@pytest.mark.parametrize("converted", [False, True])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_what_stops_a_save_is_told_as_it_is(error, converted, tmp_path, monkeypatch):
    model = bayesify.convert(net()) if converted else net()

    class Full:
        def __init__(self, file):
            self.file = file

        def write(self, data):
            self.file.write(bytes(data)[: len(data) // 2])
            raise error

        def __getattr__(self, name):
            return getattr(self.file, name)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

    fdopen = os.fdopen
    monkeypatch.setattr(module.os, "fdopen", lambda *args: Full(fdopen(*args)))
    expected = (UsageError, "No space left") if isinstance(error, OSError) else (KeyboardInterrupt, "")
    with pytest.raises(expected[0], match=expected[1]):
        bayesify.save(model, tmp_path / "m.pt")
    assert os.listdir(tmp_path) == []


def test_a_source_is_never_the_target(tmp_path):
    torch.save(net(), tmp_path / "source.pt")
    before = (tmp_path / "source.pt").read_bytes()
    (tmp_path / "link.pt").symlink_to(tmp_path / "source.pt")
    os.link(tmp_path / "source.pt", tmp_path / "hard.pt")
    for name in ("source.pt", "link.pt", "hard.pt"):
        with pytest.raises(UsageError, match="never overwritten"):
            bayesify.save(net(), tmp_path / name, sources=[tmp_path / "source.pt"])
    with pytest.raises(UsageError, match="exists already"):
        bayesify.save(net(), tmp_path / "source.pt", overwrite=False)
    assert (tmp_path / "source.pt").read_bytes() == before
