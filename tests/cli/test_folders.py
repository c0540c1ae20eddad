"""Folders on the command line: converted into a folder, and back."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

import bayesify
from tests.cli.command_line import files, run
from tests.files import folders


@pytest.fixture
def place(vision: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with a folder of transformers."""
    pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    folders.saved_by_transformers(tmp_path / "bert")
    return tmp_path


def test_a_folder_becomes_a_folder_and_a_folder_again(place: Path) -> None:
    before = files(place / "bert")
    assert "Wrote bert.flipout" in run("convert", "bert").output
    kept = json.loads((place / "bert.flipout" / "bayesify.json").read_text())
    assert kept["policy"]["method"] == "flipout"
    assert kept["plan"]["totals"]["converts"] > 0
    run("revert", "bert.flipout", "-o", "plain")
    assert (place / "plain" / "model.safetensors").read_bytes() == (place / "bert" / "model.safetensors").read_bytes()
    assert sorted(os.listdir(place / "plain")) == sorted(os.listdir(place / "bert"))
    assert files(place / "bert") == before
    report = json.loads(run("report", "bert", "--json").stdout)
    assert report["totals"] == kept["plan"]["totals"]


def test_what_is_refused_leaves_everything_as_it_was(place: Path) -> None:
    run("convert", "bert")
    before = files(place)
    assert "exists already" in run("convert", "bert", code=2).output
    assert "never overwritten" in run("convert", "bert", "-o", "bert", "--force", code=2).output
    assert "already variational" in run("convert", "bert.flipout", code=3).output
    assert "other things in it" in run("convert", "bert", "-o", "..", "--force", code=2).output
    assert "--allow goes with a file" in run("convert", "bert", "--allow", "a.B", code=2).output
    assert "folder of adapters" in run("convert", "mlp:net", "--base", "bert", code=2).output
    assert "it has no config.json" in run("convert", weights_alone(place), code=4).output
    assert {path: files(place)[path] for path in before} == before
    run("convert", "bert", "--force", "--method", "lrt", "-o", "bert.flipout")


def weights_alone(place: Path) -> str:
    (place / "alone").mkdir()
    torch.save({"w": torch.ones(2)}, place / "alone" / "pytorch_model.bin")
    return "alone"


def test_adapters_with_a_base(place: Path) -> None:
    pytest.importorskip("peft")
    folders.of_peft(place / "adapter")
    path = place / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": "somebody/bert"}))
    assert "--base FOLDER" in run("convert", "adapter", "--policy", "lora", code=2).output
    run("convert", "adapter", "--policy", "lora", "--base", "base", "-o", "made")
    assert all("lora_" in name for name, _ in bayesify.variational_layers(bayesify.load("made")))
