"""`bayesify predict`: every kind of file in and out, and what it refuses."""

import csv
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import save_file
from torch import nn

import bayesify
from bayesify.cli.commands import main
from bayesify.files.untrusted.content import opened
from bayesify.files.untrusted.numpy_file import read_npz

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with a converted model, and in it."""
    monkeypatch.chdir(tmp_path)
    model = bayesify.convert(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), "flipout")
    bayesify.set_posterior_std(model, 0.2)
    bayesify.save(model, "mlp.pt")
    np.savez("x.npz", X.numpy().astype(np.float64))
    np.savez("named.npz", input=X.numpy())
    np.savez("labelled.npz", pixels=X.numpy(), labels=np.zeros(6))
    torch.save(X, "x.pt")
    save_file({"input": X}, "x.safetensors")
    np.savetxt("x.csv", X.numpy(), delimiter=",", fmt="%.9g")
    Path("names.csv").write_text("a,b,c,d\n" + Path("x.csv").read_text())


def run(*args: str, code: int = 0) -> Result:
    result = CliRunner().invoke(main, ["predict", "mlp.pt", *args])
    assert result.exit_code == code, result.output
    return result


def expected() -> bayesify.Prediction:
    return bayesify.predict(bayesify.load("mlp.pt"), X, samples=8, seed=3, task="classification")


INPUTS = ("x.npz", "named.npz", "labelled.npz", "x.pt", "x.safetensors", "x.csv", "names.csv")


@pytest.mark.parametrize("inputs", INPUTS)
def test_every_kind_of_input(inputs: str) -> None:
    run("--inputs", inputs, "--task", "classification", "--samples", "8", "--seed", "3", "-o", "out.npz")
    found, want = np.load("out.npz"), expected()
    assert set(found.files) == {"mean", "total", "aleatoric", "epistemic", "std", "label", "confidence"}
    for name in found.files:
        np.testing.assert_allclose(found[name], getattr(want, name).numpy(), rtol=1e-5, atol=1e-6)


def test_a_table_out() -> None:
    run("--inputs", "x.csv", "--task", "classification", "--samples", "8", "--seed", "3", "-o", "out.csv")
    with open("out.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    want = expected()
    assert [int(row["label"]) for row in rows] == want.label.tolist()
    assert [float(row["mean_2"]) for row in rows] == pytest.approx(want.mean[:, 2].tolist(), rel=1e-4)
    assert [float(row["epistemic"]) for row in rows] == pytest.approx(want.epistemic.tolist(), rel=1e-3, abs=1e-6)


def test_a_summary() -> None:
    options = ["--inputs", "x.pt", "--task", "regression", "--noise", "0.5", "--chunk", "2"]
    found = json.loads(run(*options, "--json").stdout)
    assert found["task"] == "regression"
    assert found["shapes"] == {"mean": [6, 3]}
    assert found["means"]["aleatoric"] == pytest.approx(0.25)
    assert found["means"]["total"] == pytest.approx(found["means"]["aleatoric"] + found["means"]["epistemic"])
    text = run(*options, "-o", "out.csv").stdout
    assert "aleatoric    0.25" in text
    assert "Wrote out.csv" in text


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_numpy_s_files_as_numpy_reads_them(save: Any, tmp_path: Path) -> None:
    arrays = {
        "bytes": np.arange(5, dtype=np.uint8), "big": np.arange(6, dtype=">i4").reshape(2, 3), "none": np.ones((0, 3)),
        "one": np.array(2.5), "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)), "true": np.array([True]),
        "complex": np.array([1j]), "half": np.ones(3, np.float16),
    }  # fmt: skip
    save(tmp_path / "x.npz", **arrays)
    with opened(tmp_path / "x.npz") as content:
        found = read_npz(content)
    assert {name: array.dtype.newbyteorder("=") for name, array in arrays.items()} == {
        name: array.dtype for name, array in found.items()
    }
    assert all(np.array_equal(array, found[name]) for name, array in arrays.items())


def test_an_output_is_whole_or_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is full while it is written; a file and a link that appear while it is predicted."""
    for name in ("out.npz", "out.csv"):
        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", full)
            assert "No space left" in run("--inputs", "x.csv", "-o", name, code=2).output
        assert not Path(name).exists()
        Path("mine").write_text("mine")
        with monkeypatch.context() as patched:
            patched.setattr("bayesify.cli.predict_command._predicted", appearing(name))
            assert "exists already" in run("--inputs", "x.csv", "-o", name, code=2).output
            Path(name).unlink()
            run("--inputs", "x.csv", "-o", name, "--force")
        assert Path("mine").read_text() == "mine"
        assert not Path(name).is_symlink()
    assert not [path for path in Path().iterdir() if path.name.startswith(".")]


def full(descriptor: int) -> None:
    raise OSError(28, "No space left on device")


def appearing(name: str) -> Any:
    """Predicts, while somebody else puts a link where the result goes."""

    def predicted(*_: Any, **__: Any) -> bayesify.Prediction:
        Path(name).symlink_to("mine")
        return bayesify.predict(bayesify.load("mlp.pt"), X, samples=2)

    return predicted


def test_what_is_refused(tmp_path: Path) -> None:
    assert "no such file" in run("--inputs", "none.npz", code=2).output
    assert "end in .npz, .pt, .safetensors, .csv" in run("--inputs", "x.txt", code=2).output
    assert "end in .npz or .csv" in run("--inputs", "x.pt", "-o", "out.json", code=2).output
    assert "never overwritten" in run("--inputs", "x.npz", "-o", "x.npz", "--force", code=2).output
    Path("out.npz").write_text("mine")
    assert "exists already" in run("--inputs", "x.npz", "-o", "out.npz", code=2).output
    Path("broken.npz").write_text("not a zip")
    assert "is not an .npz file of numbers" in run("--inputs", "broken.npz", code=4).output
    np.savez("objects.npz", np.array([{}], dtype=object))
    assert "is not an array of numbers" in run("--inputs", "objects.npz", code=4).output
    Path("bad.csv").write_text("1,2,3,4\n1,2,x,4\n")
    assert "line 2 of the numbers" in run("--inputs", "bad.csv", code=4).output
    Path("empty.csv").write_text("a,b\n")
    assert "no line of numbers" in run("--inputs", "empty.csv", code=4).output
    torch.save({"x": torch.nn.Linear(4, 4)}, "module.pt")
    assert "holds a torch.nn.modules.linear.Linear" in run("--inputs", "module.pt", code=4).output
    assert "observation noise" in run("--inputs", "x.pt", "--task", "regression", code=2).output
    torch.save(X[None].expand(2, 6, 4).clone(), "deep.pt")
    torch.save(torch.randn(5, 7), "wide.pt")
    message = run("--inputs", "wide.pt", code=2).output
    assert "wide.pt: the model fails with these inputs: RuntimeError" in message
    assert "a table has rows and columns" in run("--inputs", "deep.pt", "-o", "out.csv", code=2).output
