"""A folder takes its place as a whole, or what was there stays, wherever a process ends."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import bayesify
from bayesify.cli.terminal import ended_as_by_an_error
from bayesify.files import whole_folder as module
from bayesify.files.whole_folder import whole_folder

ROOT = Path(bayesify.__file__).parents[1]


@pytest.fixture(params=[True, False], ids=["exchanged", "in two steps"])
def system(request, monkeypatch):
    """A system that swaps two folders in one step, and one that does not."""
    if not request.param:
        monkeypatch.setattr(module, "_exchanged", lambda fresh, target: False)


@pytest.fixture
def target(tmp_path):
    """A folder that was written before."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "file").write_text("old")
    return tmp_path / "model"


def write(target: Path, overwrite: bool = True) -> None:
    with whole_folder(target, overwrite=overwrite) as fresh:
        (fresh / "file").write_text("new")


def found(target: Path) -> tuple[str, list[str]]:
    """What is in the folder, and what is beside it."""
    return (target / "file").read_text(), os.listdir(target.parent)


def test_an_older_folder_is_replaced_at_the_callers_word_only(system, target):
    with pytest.raises(FileExistsError):
        write(target, overwrite=False)
    assert found(target) == ("old", ["model"])
    write(target)
    assert found(target) == ("new", ["model"])


def ending(name: str, monkeypatch) -> None:
    """Have SIGTERM come in the first call of a function, after what it does."""
    owner = os if hasattr(os, name) else shutil
    plain, calls = getattr(owner, name), []

    def last(*args, **options):
        try:
            return plain(*args, **options)
        finally:
            calls.append(name)
            if len(calls) == 1:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0)

    monkeypatch.setattr(owner, name, last)


@pytest.mark.parametrize("name", ["mkdir", "fsync", "rename", "rmtree", "unlink"])
def test_sigterm_leaves_one_whole_folder_and_nothing_else(name, system, target, monkeypatch):
    def ended() -> None:
        with ended_as_by_an_error():
            write(target)
            os.kill(os.getpid(), signal.SIGTERM)  # in one step, nothing is renamed
            time.sleep(0)

    with monkeypatch.context() as changed:
        ending(name, changed)
        with pytest.raises(SystemExit):
            ended()
    content, beside = found(target)
    assert content in ("old", "new")
    assert beside == ["model"]


def test_killed_writers_of_folders_leave_a_whole_one(vision):
    """`scripts/kill_writers`, a few times."""
    pytest.importorskip("transformers")
    command = [sys.executable, str(ROOT / "scripts" / "kill_writers"), "--folder", "--times", "15"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "15 times killed, 0 times damage" in done.stdout
