"""How the command line ends: errors, warnings, a failing save, closed pipes and interrupts."""

import os
import re
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest

import bayesify
from bayesify.files.model_file.write import ModelFile
from bayesify.planning import planner
from tests.cli.command_line import files, run

ROOT = Path(__file__).resolve().parents[2]


def shell(*args: str, **kwargs) -> subprocess.Popen:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **kwargs.pop("env", {})}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **kwargs}
    return subprocess.Popen([sys.executable, "-m", "bayesify", *args], env=env, text=True, encoding="utf-8", **pipes)


def test_an_unexpected_error_is_one_line(here, monkeypatch):
    def fail(*args, **kwargs):
        raise KeyError("deep inside\nand more")

    monkeypatch.setattr(planner, "plan", fail)
    result = run("report", "mlp.pt", code=1)
    assert re.fullmatch(r"Error: unexpected KeyError: .*BAYESIFY_TRACEBACK=1 shows where\)\n", result.stderr)
    monkeypatch.setenv("BAYESIFY_TRACEBACK", "1")
    assert "Traceback" in run("report", "mlp.pt", code=1).stderr


def test_our_own_warnings_are_shown(here, monkeypatch):
    def warn(*args, **kwargs):
        warnings.warn_explicit("mind this", UserWarning, "planner.py", 1, module="bayesify.planning.planner")
        warnings.warn_explicit("not this", UserWarning, "x.py", 1, module="torch.nn")
        return original(*args, **kwargs)

    original = bayesify.plan
    monkeypatch.setattr(planner, "plan", warn)
    assert run("report", "mlp.pt").stderr == "Warning: mind this\n"


def test_a_failing_save_leaves_nothing(here, monkeypatch):
    def fail(file):
        yield b"half"
        raise OSError(28, "No space left on device")

    before = files(here)
    monkeypatch.setattr(ModelFile, "parts", fail)
    assert "No space left" in run("convert", "mlp.pt", code=2).stderr
    assert files(here) == before


def test_as_a_program(here, vision):
    process = shell("convert", "mlp.pt", env={"PYTHONIOENCODING": "utf-8"})
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert "\x1b" not in out
    assert max(map(len, out.splitlines())) <= 80
    process = shell("report", "mlp.pt", env={"PYTHONIOENCODING": "ascii"})
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert "Linear -> FlipoutLinear" in out


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_closed_pipe(here, options):
    read, write = os.pipe()
    os.close(read)
    process = shell("report", "mlp.pt", *options, stdout=write)
    os.close(write)
    assert process.communicate(timeout=60)[1] == ""


def test_interrupted(here):
    before = files(here)
    process = shell("convert", "clinets:Net", "--arg", "nap=60", stderr=subprocess.STDOUT)
    while "chatter" not in process.stdout.readline():
        assert process.poll() is None
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "Traceback" not in out
    assert files(here) == before
