"""`bayesify export`: files that other runtimes open, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import bayesify
from tests.cli.command_line import files, run


@pytest.fixture(autouse=True)
def net(here: Path) -> None:
    """A converted model in a file, with its plan."""
    plain = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    bayesify.save(bayesify.convert(plain, "moped"), "net.pt")
    Path("older.onnx").write_bytes(b"older")


def test_onnx_of_samples() -> None:
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    result = run("export", "net.pt", "-o", "net.onnx", "--samples", "8", "--task", "classification", "--input", "1x4")
    assert "input → probability, entropy, mutual_information" in result.stdout
    assert "Ran in onnxruntime beside the model: means and stds agree" in result.stdout
    session = runtime.InferenceSession("net.onnx")
    assert session.get_inputs()[0].shape == ["batch", 4]
    kept = session.get_modelmeta().custom_metadata_map
    assert kept["bayesify.mode"] == "samples"
    assert json.loads(kept["bayesify"])["policy"]["prior"]["std"] == {"relative": 0.1}


def test_program_of_draws_as_json() -> None:
    torch.save(torch.randn(2, 4), "x.pt")
    result = run("export", "net.pt", "-o", "net.pt2", "--draws", "2", "--seed", "3", "--input-file", "x.pt", "--json")
    metadata = json.loads(result.stdout)
    assert (metadata["mode"], metadata["passes"], metadata["seed"]) == ("draws", 2, 3)
    assert set(torch.export.load("net.pt2").module()(torch.randn(5, 4))) == {"mean", "variance"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["-o", "net.pt2", "--mean"], "--input 1x3x224x224"),
        (["-o", "net.pt2", "--input", "1x4"], "one of mean, noise"),
        (["-o", "net.txt", "--mean", "--input", "1x4"], ".onnx for ONNX, .pt2"),
        (["-o", "net.pt2", "--mean", "--input", "1x5"], "fails with these example_inputs"),
        (["-o", "older.onnx", "--mean", "--input", "1x4"], "exists already"),
        (["-o", "net.pt", "--mean", "--input", "1x4", "--force"], "never overwritten"),
        (["-o", "net.pt2", "--mean", "--input", "1x4", "--task", "regression"], "go with samples=K and draws=K"),
    ],
)
def test_what_is_refused(here: Path, options: list[str], words: str) -> None:
    before = files(here)
    result = run("export", "net.pt", *options, code=2)
    assert words in result.stderr
    assert files(here) == before
