"""Files of ours whose description says what no description says, under a right checksum: each is told as it is."""

import contextlib
import copy
import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import nn

import bayesify
from bayesify.cli.commands import main
from bayesify.errors import BayesifyError, FileRefusedError
from bayesify.files.model_file.description import KEY
from bayesify.files.read_weights import read_weights
from tests.files.made_files import net, redescribed

JUNK = [5, "x", [], {}, [5], {"a": 5}, [1 << 40], None, True]
FIELDS = ["plan", "versions", "extras", "factory", "checksums", "nodes", "conversion", "tensors", "structure", "format"]


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("own") / "m.pt"
    bayesify.save(bayesify.convert(net(), "flipout"), path)
    return path.read_bytes()


def description_of(content: bytes) -> dict:
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return json.loads(header["__metadata__"][KEY])


def tried(path: Path, content: bytes) -> None:
    """Each way of opening it goes well, or is an error of ours."""
    path.write_bytes(content)
    for call in (lambda: bayesify.revert(bayesify.load(path)), lambda: bayesify.load(path, into=net())):
        with contextlib.suppress(BayesifyError):
            call()
    with contextlib.suppress(BayesifyError):
        read_weights(path)


@pytest.mark.parametrize("field", FIELDS)
def test_a_field_of_another_kind(field: str, content: bytes, tmp_path: Path) -> None:
    for value in JUNK:
        tried(tmp_path / "m.pt", redescribed(content, lambda d, value=value: d.update({field: value})))


def test_every_part_of_what_conversion_says(content: bytes, tmp_path: Path) -> None:
    """Each value in the table, replaced by each other kind: the network that a caller gives stays one."""
    description = description_of(content)
    table = description["nodes"]
    (place,) = description["conversion"]
    for key, (inner,) in table[place]["dict"]:
        at = inner if isinstance(inner, int) else place
        for value in JUNK:
            changed = copy.deepcopy(table)
            changed[at] = {"list": value} if isinstance(value, list) else {"dict": [[key, 5]], "x": value}
            tried(tmp_path / "m.pt", redescribed(content, lambda d, changed=changed: d.update(nodes=changed)))


def test_the_kl_takes_no_method_s_place(content: bytes, tmp_path: Path) -> None:
    path, changed = tmp_path / "m.pt", description_of(content)["nodes"]
    for entry in changed:
        if entry.get("list") == ["kl"]:
            entry["list"] = ["forward"]
    path.write_bytes(redescribed(content, lambda description: description.update(nodes=changed)))
    network = net()
    with pytest.raises(FileRefusedError, match="in the place of Sequential"):
        bayesify.load(path, into=network)
    assert network(torch.ones(2, 4)).shape == (2, 2)


@pytest.mark.parametrize("field", ["plan", "versions", "extras"])
def test_commands_that_show_it(field: str, content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for value in (5, {"policy": {"x": 5}, "rows": [5]}):
        Path("m.pt").write_bytes(redescribed(content, lambda d, value=value: d.update({field: value})))
        for command in (["inspect", "m.pt", "--html", "m.html", "--force"], ["export", "m.pt", "-o", "m.pt2", "--force",
                        "--mean", "--input", "3x4"]):  # fmt: skip
            assert CliRunner().invoke(main, command).exit_code in (0, 4)


CALIBRATIONS = [5, {}, {"conformal": None}, {"conformal": None, "scores": []}, {"conformal": 5, "scores": [5]}]


@pytest.mark.parametrize("kept", CALIBRATIONS)
def test_a_calibration_that_cannot_be(kept: object, tmp_path: Path) -> None:
    model = bayesify.convert(nn.Sequential(nn.Linear(4, 2)))
    model._calibration = kept
    torch.save(model, tmp_path / "m.pt")
    with pytest.raises(FileRefusedError, match="calibration is damaged"):
        bayesify.predict(bayesify.load(tmp_path / "m.pt"), torch.ones(2, 4), samples=2)
