"""The command line, from the outside: what it prints where, what it writes, and how it ends."""

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import bayesify
from bayesify.files import read_weights
from bayesify.files.load_model import load_model as load
from tests.cli.command_line import files, run


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


def test_method_beside_a_policy_replaces_its_top_level_method(here):
    Path("p.yaml").write_text("method: flipout\nrules: [{targets: ['0'], method: flipout}, {targets: ['2']}]")
    rows = json.loads(run("report", "mlp.pt", "--policy", "p.yaml", "--method", "lrt", "--json").stdout)["rows"]
    assert [row["becomes"] for row in rows] == ["FlipoutLinear", "LRTLinear"]


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
        (["--input", "5,4"], "'5,4' is not a shape"),
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
