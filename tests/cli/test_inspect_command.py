"""`bayesify inspect`: on stdout, as JSON, as a page; with data of every kind; and what it refuses."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner, Result
from safetensors.torch import save_file
from torch import nn

import bayesify
from bayesify.cli.commands import main
from tests.files.folders import saved_by_transformers

LABELS = torch.arange(30) % 3
X = F.one_hot(LABELS, 4).float() + 0.3 * torch.randn(30, 4, generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with a plain model, its conversion, and data; and in it."""
    monkeypatch.chdir(tmp_path)
    torch.save(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.BatchNorm1d(8), nn.Linear(8, 3)), "mlp.pt")
    assert CliRunner().invoke(main, ["convert", "mlp.pt"]).exit_code == 0
    np.savez("data.npz", X.numpy(), LABELS.numpy())
    np.savez("named.npz", input=X.numpy(), labels=LABELS.numpy())
    torch.save((X, LABELS), "data.pt")
    save_file({"input": X, "label_ids": LABELS}, "data.safetensors")
    table = np.concatenate([X.numpy(), LABELS.numpy()[:, None]], 1)
    np.savetxt("data.csv", table, delimiter=",", fmt="%.9g")
    np.savez("ood.npz", np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32))


def run(*args: str, code: int = 0) -> Result:
    result = CliRunner().invoke(main, ["inspect", *args])
    assert result.exit_code == code, result.output
    return result


def test_a_table() -> None:
    text = run("mlp.flipout.pt").stdout
    assert "0.weight" in text
    assert "start" in text
    assert "bayesify.fit_std" in text


@pytest.mark.parametrize("data", ["data.npz", "named.npz", "data.pt", "data.safetensors", "data.csv"])
def test_every_kind_of_data(data: str) -> None:
    options = ["--data", data, "--task", "classification", "--samples", "4", "--json"]
    found = json.loads(run("mlp.flipout.pt", *options).stdout)
    model = bayesify.load("mlp.flipout.pt")
    expected = bayesify.inspect(model, [(X, LABELS)], task="classification", samples=4).quality
    assert expected is not None
    nlls = [way["nll"] for way in found["quality"]["performances"]]
    assert nlls == pytest.approx([way.nll for way in expected.performances], rel=1e-5)
    assert [state["reached"] for state in found["posteriors"]] == [True, True]
    assert found["findings"][0]["kind"] == "start"


def test_a_page() -> None:
    pytest.importorskip("matplotlib")
    options = ["--data", "data.npz", "--task", "classification", "--ood", "ood.npz", "--samples", "4"]
    result = run("mlp.flipout.pt", *options, "--html", "r.html")
    assert "Wrote r.html" in result.stdout
    text = Path("r.html").read_text()
    assert hashlib.sha256(Path("mlp.flipout.pt").read_bytes()).hexdigest() in text
    assert "bayesify inspect mlp.flipout.pt --data data.npz --task classification --ood ood.npz --samples 4" in text
    assert "keeps: 1 BatchNorm1d" in text
    assert f"bayesify {bayesify.__version__}" in text
    assert "exists already" in run("mlp.flipout.pt", "--html", "r.html", code=2).output
    run("mlp.flipout.pt", "--html", "r.html", "--force")
    assert "AUROC" not in Path("r.html").read_text()


def test_json_has_no_infinity() -> None:
    model = bayesify.load("mlp.flipout.pt")
    with torch.no_grad():
        model[0].weight[0] = float("nan")
    bayesify.save(model, "nan.pt")
    text = run("nan.pt", "--json").stdout
    assert json.loads(text, parse_constant=pytest.fail)["findings"][0]["kind"] == "not finite"


def test_what_is_refused() -> None:
    assert "no variational layer" in run("mlp.pt", code=3).output
    assert "no such file" in run("none.pt", code=2).output
    assert "give them by --data" in run("mlp.flipout.pt", "--ood", "ood.npz", code=2).output
    assert "no target" in run("mlp.flipout.pt", "--data", "ood.npz", "--task", "classification", code=2).output
    assert "never overwritten" in run("mlp.flipout.pt", "--html", "mlp.flipout.pt", "--force", code=2).output
    Path("one.csv").write_text("1\n2\n")
    assert "one column" in run("mlp.flipout.pt", "--data", "one.csv", code=2).output
    assert "is not" in run("mlp.flipout.pt", "--task", "clasification", code=2).output
    Path("wide.csv").write_text("1,2,3,4,5,6,7,0\n" * 4)
    message = run("mlp.flipout.pt", "--data", "wide.csv", "--task", "classification", code=2).output
    assert "wide.csv: the model fails with these inputs: RuntimeError" in message


def test_data_without_a_task_say_what_is_reached() -> None:
    found = json.loads(run("mlp.flipout.pt", "--data", "data.npz", "--json").stdout)
    assert found["quality"] is None
    assert [state["reached"] for state in found["posteriors"]] == [True, True]


def test_a_folder_says_where_it_comes_from(vision: object) -> None:
    pytest.importorskip("transformers")
    pytest.importorskip("matplotlib")
    saved_by_transformers(Path("bert"))
    bayesify.save(bayesify.convert(bayesify.load("bert"), "lrt"), "bert.lrt/")
    said = json.loads(run("bert.lrt", "--json").stdout)["origin"]
    assert said["plan"]["policy"]["method"] == "lrt"
    assert said["versions"]["bayesify"] == bayesify.__version__
    assert said["checksum"] == hashlib.sha256(Path("bert.lrt/bayesify.json").read_bytes()).hexdigest()
