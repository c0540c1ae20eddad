"""A file is what its bytes say, whatever its name."""

import gzip
import zipfile

import pytest
import torch

from bayesify.errors import UsageError
from bayesify.files.untrusted.file_kind import sniff
from tests.files.made_files import net, safetensors_bytes, saved
from tests.files.test_broken_files import FILES

KINDS = {
    "torch zip": saved(net()),
    "torch old": saved(net(), old=True),
    "safetensors": safetensors_bytes(b"{}"),
    "empty": b"",
    "truncated": FILES["cut zip"],
    "pickle": FILES["plain pickle"],
    "web page": FILES["HTML"],
    "git-lfs pointer": FILES["git-lfs"],
    "text": "ümläute, αβγ\n".encode() * 400,
    "HDF5": FILES["HDF5"],
    "numpy": FILES["npy"],
    "ONNX": FILES["ONNX"],
    "GGUF": FILES["GGUF"],
    "torch tar": FILES["tar"],
    "unknown": gzip.compress(b"x" * 100),
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_recognised_and_has_help(kind, file):
    for name in ("a.pt", "a.safetensors", "a"):
        found = sniff(file(KINDS[kind], name))
        assert found.kind == kind
        assert (found.refusal is None) == (kind in ("torch zip", "torch old", "safetensors"))


def test_a_folder_and_a_file_that_is_not_there(tmp_path):
    assert sniff(tmp_path).kind == "folder"
    with pytest.raises(UsageError, match="no such file"):
        sniff(tmp_path / "none")


@pytest.mark.parametrize("old", [False, True])
def test_every_cut_of_a_file_is_seen_or_reported(old, file):
    """No prefix of a file passes for another kind that could be read as something else."""
    content = saved({"a": torch.ones(2)}, old)
    kinds = {sniff(file(content[:size])).kind for size in range(8, len(content))}
    assert kinds <= {"truncated", "torch old"} | ({"pickle"} if old else set())


def test_models_of_other_programs(file, tmp_path):
    path = tmp_path / "m.keras"
    with zipfile.ZipFile(path, "w") as made:
        for name in ("metadata.json", "config.json", "model.weights.h5"):
            made.writestr(name, b"{}")
    assert "a model of Keras" in str(sniff(path).refusal)
    assert "TensorFlow checkpoint" in str(sniff(file(b"\0" * 40 + bytes.fromhex("57fb808b247547db"))).refusal)
    assert "bayesify convert FOLDER" in str(sniff(file(b"GGUF" + b"\0" * 40)).refusal)
