"""The command line, from the outside: what it prints where, what it writes, and how it ends."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import nn

import bayesify
from bayesify.cli.commands import main
from bayesify.files import read_weights
from bayesify.files.load_model import load_model as load
from bayesify.files.model_file.write import ModelFile

ROOT = Path(__file__).resolve().parents[2]

NETS = """
import sys, time, warnings
from torch import nn

class Net(nn.Module):
    def __init__(self, width=8, nap=0):
        super().__init__()
        print("the model's own chatter")
        warnings.warn("torch's own worry")
        time.sleep(nap)
        self.a = nn.Linear(4, width)
        self.b = nn.Linear(width, 2)

    def forward(self, x):
        return self.b(self.a(x).relu())

def named():
    model = nn.Sequential(nn.Linear(2, 2))
    model.kl = 3
    return model
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a model and some code, and in it."""
    monkeypatch.chdir(tmp_path)
    torch.save(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), "mlp.pt")
    Path("clinets.py").write_text(NETS)
    yield tmp_path
    sys.modules.pop("clinets", None)


def run(*args: str, code: int = 0):
    result = CliRunner().invoke(main, args)
    assert result.exit_code == code, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result


def shell(*args: str, **kwargs) -> subprocess.Popen:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **kwargs.pop("env", {})}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **kwargs}
    return subprocess.Popen([sys.executable, "-m", "bayesify", *args], env=env, text=True, encoding="utf-8", **pipes)


def files(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {str(path): path.read_bytes() for path in found}


def test_convert_writes_beside_the_model_and_prints_the_report(here):
    before = Path("mlp.pt").read_bytes()
    result = run("convert", "mlp.pt")
    assert result.stderr == ""
    assert "Linear → FlipoutLinear" in result.stdout
    assert result.stdout.endswith("\nWrote mlp.flipout.pt\n")
    assert Path("mlp.pt").read_bytes() == before
    model, plain = load("mlp.flipout.pt"), torch.load("mlp.pt", weights_only=False)
    x = torch.randn(3, 4)
    with bayesify.posterior_mean(model):
        assert torch.equal(model(x), plain(x))
    assert not torch.equal(model(x), model(x))
    assert model.kl().isfinite()


def test_there_and_back(here):
    run("convert", "mlp.pt", "--method", "lrt", "-o", "bayes.pt")
    assert run("revert", "bayes.pt", "-o", "mean.pt").stdout == "Wrote mean.pt\n"
    run("revert", "bayes.pt", "-o", "draw.pt", "--weights", "sample")
    plain, mean, draw = (load(f"{name}.pt").state_dict() for name in ("mlp", "mean", "draw"))
    assert plain.keys() == mean.keys() == draw.keys()
    assert all(torch.equal(plain[name], mean[name]) for name in plain)
    assert not torch.equal(plain["0.weight"], draw["0.weight"])


@pytest.mark.parametrize("command", [("convert", "--dry-run"), ("report",)])
def test_a_dry_run_writes_nothing_and_says_what_convert_says(here, command):
    before = files(here)
    dry = run(command[0], "mlp.pt", *command[1:])
    assert files(here) == before
    wet = run("convert", "mlp.pt")
    report = wet.stdout.removesuffix("\nWrote mlp.flipout.pt\n")
    assert dry.stdout.removesuffix("\nDry run: nothing was written.\n") == report


@pytest.mark.parametrize("command", [("report",), ("convert", "--dry-run"), ("convert",), ("convert", "--full")])
def test_json_is_the_plan_and_nothing_else(here, command):
    result = run(command[0], "mlp.pt", "--json", "--policy", "last-layer", *command[1:])
    assert json.loads(result.stdout) == bayesify.plan(load("mlp.pt"), "last-layer").to_dict()


def test_a_factory(here, monkeypatch):
    reads = []
    weights_in = read_weights.weights_in

    def counted(*args, **options):
        reads.append(args)
        return weights_in(*args, **options)

    monkeypatch.setattr(read_weights, "weights_in", counted)
    shapes = {"a.weight": (6, 4), "a.bias": (6,), "b.weight": (2, 6), "b.bias": (2,)}
    torch.save({"state_dict": {f"module.{name}": torch.ones(shape) for name, shape in shapes.items()}}, "sd.pt")
    result = run("convert", "clinets:Net", "--arg", "width=6", "--weights", "sd.pt", "--key", "state_dict", "--json")
    assert json.loads(result.stdout)["model"] == "Net"
    assert "chatter" in result.stderr
    assert "sd.pt: stripped 'module.' from the names\n" in result.stderr
    assert "worry" not in result.stderr
    assert len(reads) == 1
    model = load("Net.flipout.pt", allow=["clinets.Net"])
    assert torch.equal(model.a.weight, torch.ones(6, 4))
    run("report", "clinets:Net", "--method", "lrt")


def test_options_reach_the_reader(here):
    sys.path.insert(0, str(here))
    try:
        torch.save(__import__("clinets").Net(), "net.pt")
    finally:
        sys.path.remove(str(here))
    assert "--allow clinets.Net" in run("convert", "net.pt", code=4).stderr
    run("convert", "net.pt", "--allow", "clinets.Net")
    run("revert", "net.flipout.pt", "-o", "back.pt", code=4)
    run("revert", "net.flipout.pt", "-o", "back.pt", "--allow", "clinets.*")
    torch.save({"a.weight": torch.ones(8, 4), "a.bias": torch.ones(8)}, "half.pt")
    assert "misses 2" in run("report", "clinets:Net", "--weights", "half.pt", code=4).stderr
    run("report", "clinets:Net", "--weights", "half.pt", "--ignore-keys", "b.*")


@pytest.mark.parametrize(
    ("model", "options", "output"),
    [
        ("mlp.pt", [], "mlp.flipout.pt"),
        ("mlp.pt", ["--method", "lrt"], "mlp.lrt.pt"),
        ("mlp.pt", ["--policy", "moped", "--method", "lrt"], "mlp.lrt.pt"),
        ("mlp.pt", ["--policy", "last-layer"], "mlp.flipout.pt"),
        ("mlp.pt", ["--policy", "kept.yaml"], "mlp.lrt.pt"),
        ("mlp.pt", ["--policy", "both.yaml"], "mlp.both.pt"),
        ("sub/old.net.pth", [], "sub/old.net.flipout.pth"),
        ("sub/noending", [], "sub/noending.flipout.pt"),
        ("sub/v1.2", [], "sub/v1.2.flipout.pt"),
        ("sub/program.pt2", [], "sub/program.flipout.pt"),
        ("clinets:Net", [], "Net.flipout.pt"),
        ("mlp.pt", ["-o", "sub/x"], "sub/x"),
    ],
)
def test_where_it_is_written(here, model, options, output):
    Path("sub").mkdir()
    Path("both.yaml").write_text("rules: [{targets: ['0'], method: lrt}, {targets: ['2']}]")
    Path("kept.yaml").write_text("rules: [{targets: ['0'], method: keep}, {targets: ['2'], method: lrt}]")
    for name in ("old.net.pth", "noending", "v1.2"):
        Path("sub", name).write_bytes(Path("mlp.pt").read_bytes())
    torch.export.save(torch.export.export(nn.Linear(2, 2), (torch.ones(2, 2),)), "sub/program.pt2")
    before = set(files(here))
    assert run("convert", model, *options).stdout.endswith(f"Wrote {output}\n")
    assert set(files(here)) - before == {str(here / output)}


def test_method_beside_a_policy_replaces_its_top_level_method(here):
    Path("p.yaml").write_text("method: flipout\nrules: [{targets: ['0'], method: flipout}, {targets: ['2']}]")
    rows = json.loads(run("report", "mlp.pt", "--policy", "p.yaml", "--method", "lrt", "--json").stdout)["rows"]
    assert [row["becomes"] for row in rows] == ["FlipoutLinear", "LRTLinear"]


def test_force_replaces_what_is_there(here):
    Path("mlp.flipout.pt").write_text("old")
    assert "--force" in run("convert", "mlp.pt", code=2).stderr
    assert Path("mlp.flipout.pt").read_text() == "old"
    run("convert", "mlp.pt", "--force")
    assert load("mlp.flipout.pt").kl().isfinite()


@pytest.mark.parametrize("alias", ["mlp.pt", "./sub/../mlp.pt", "absolute", "symlink.pt", "hardlink.pt", "sub/up.pt"])
@pytest.mark.parametrize("command", ["convert", "revert"])
def test_the_source_is_never_overwritten(here, alias, command):
    Path("sub").mkdir()
    Path("symlink.pt").symlink_to("mlp.pt")
    Path("hardlink.pt").hardlink_to("mlp.pt")
    Path("sub/up.pt").symlink_to("../symlink.pt")
    before = files(here)
    target = str(here / "mlp.pt") if alias == "absolute" else alias
    assert "never overwritten" in run(command, "mlp.pt", "-o", target, "--force", code=2).stderr
    assert files(here) == before


def test_weights_and_policies_are_not_overwritten(here):
    Path("p.yaml").write_text("method: lrt")
    torch.save(nn.Linear(2, 2).state_dict(), "sd.pt")
    for output in ("p.yaml", "sd.pt"):
        args = ("torch.nn:Linear", "--arg", "in_features=2", "--arg", "out_features=2", "--weights", "sd.pt")
        assert "never" in run("convert", *args, "--policy", "p.yaml", "-o", output, "--force", code=2).stderr


def _notes(result):
    return {row["name"]: row["notes"] for row in json.loads(result.stdout)["rows"]}


def test_example_inputs(here):
    assert _notes(run("report", "mlp.pt", "--json", "--input", "5x4"))["2"] == ["called once, (5, 8)"]
    torch.save({"x": torch.randn(7, 4)}, "batch.pt")
    found = run("convert", "clinets:Net", "-o", "net.pt", "--json", "--input-file", "batch.pt")
    assert _notes(found)["b"] == ["called once, (7, 8)"]
    assert load("net.pt", allow=["clinets.Net"]).kl().isfinite()


def test_example_inputs_tell_the_command_line_where_the_batch_is(here):
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=False)
    torch.save(nn.Sequential(layer, nn.Linear(4, 2)), "sequence_first.pt")
    run("convert", "sequence_first.pt", "-o", "told.pt", "--input", "3xNx4")
    assert {layer._settings.batch_dim for _, layer in bayesify.variational_layers(load("told.pt"))} == {0, 1}
    assert dict(bayesify.variational_layers(load("told.pt")))["1"]._settings.batch_dim == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--input", "5x3"], "fails with these example_inputs"),
        (["--input", "5,4"], "'5,4' is no shape"),
        (["--input", "5x4", "--input-file", "batch.pt"], "give one of them"),
        (["--input-file", "bach.pt"], "no such file"),
    ],
)
def test_wrong_example_inputs(here, options, message):
    before = files(here)
    result = run("convert", "mlp.pt", *options, code=2)
    assert message in result.stderr
    assert result.stdout == ""
    assert files(here) == before


def test_example_inputs_are_not_overwritten(here):
    torch.save(torch.randn(7, 4), "batch.pt")
    before = files(here)
    run("convert", "mlp.pt", "--input-file", "batch.pt", "-o", "batch.pt", "--force", code=2)
    assert files(here) == before


def test_a_model_with_a_kl_of_its_own(here):
    assert "'kl'" in run("convert", "clinets:named", code=1).stderr
    run("convert", "clinets:named", "--kl-name", "kl_q")
    assert load("named.flipout.pt").kl_q().isfinite()


def test_policies(here):
    names = run("policy", "show").stdout.split()
    assert names == ["flipout", "last-layer", "lora", "lrt", "moped", "scratch", "sparse"]
    for name in run("policy", "show").stdout.split():
        Path("mine.yaml").write_text(run("policy", "show", name).stdout)
        assert run("policy", "check", "mine.yaml").stdout.startswith("mine.yaml: a valid policy, ")
        full = json.loads(run("policy", "show", name, "--json").stdout)
        assert full == bayesify.Policy.parse(name).to_dict() == bayesify.Policy.from_yaml("mine.yaml").to_dict()
    assert json.loads(run("policy", "schema").stdout) == bayesify.Policy.json_schema()


@pytest.mark.parametrize("args", [(), ("convert",), ("report",), ("revert",), ("policy",), ("policy", "show")])
def test_every_help_text_fits_and_has_an_example(args):
    text = run(*args, "--help").stdout
    assert max(map(len, text.splitlines())) <= 100
    assert args == ("policy",) or "Example" in text


def test_version():
    assert run("--version").stdout == f"bayesify, version {bayesify.__version__}\n"


def test_an_unexpected_error_is_one_line(here, monkeypatch):
    def fail(*args, **kwargs):
        raise KeyError("deep inside\nand more")

    monkeypatch.setattr(sys.modules["bayesify.planning.planner"], "plan", fail)
    result = run("report", "mlp.pt", code=1)
    assert re.fullmatch(r"Error: unexpected KeyError: .*BAYESIFY_TRACEBACK=1 shows where\)\n", result.stderr)
    monkeypatch.setenv("BAYESIFY_TRACEBACK", "1")
    assert "Traceback" in run("report", "mlp.pt", code=1).stderr


def test_our_own_warnings_are_shown(here, monkeypatch):
    def warn(*args, **kwargs):
        warnings.warn_explicit("mind this", UserWarning, "planner.py", 1, module="bayesify.planning.planner")
        warnings.warn_explicit("not this", UserWarning, "x.py", 1, module="torch.nn")
        return bayesify.plan(*args, **kwargs)

    monkeypatch.setattr(sys.modules["bayesify.planning.planner"], "plan", warn)
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
