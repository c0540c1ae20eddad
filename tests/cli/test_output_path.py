"""Where a command writes, and what it does not overwrite."""

from pathlib import Path

import pytest
import torch
from torch import nn

from bayesify.files.load_model import load_model as load
from tests.cli.command_line import files, run


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


def test_example_inputs_are_not_overwritten(here):
    torch.save(torch.randn(7, 4), "batch.pt")
    before = files(here)
    run("convert", "mlp.pt", "--input-file", "batch.pt", "-o", "batch.pt", "--force", code=2)
    assert files(here) == before
