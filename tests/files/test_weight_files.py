"""Weights in shards and folders: each file is where it should be, and holds what it should."""

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file

from bayesify.errors import FileRefusedError
from bayesify.files.prefixes import common_prefix
from bayesify.files.read_weights import read_weights

PARTS = {"one.safetensors": {"a": torch.ones(2)}, "two.safetensors": {"b.c": torch.arange(3)}}


@pytest.fixture
def index(tmp_path):
    """An index of two shards."""
    for name, tensors in PARTS.items():
        save_file(tensors, tmp_path / name)
    return written(tmp_path, {"a": "one.safetensors", "b.c": "two.safetensors"})


def written(folder, table):
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps({"metadata": {}, "weight_map": table}))
    return path


def test_shards_are_joined(index):
    for path in (index, index.parent):
        read = read_weights(path)
        assert read.state_dict.keys() == {"a", "b.c"}
        assert torch.equal(read.state_dict["b.c"], torch.arange(3))
        assert read.notes == ("joined 2 shards by model.safetensors.index.json",)
    assert all(tensor.is_meta for tensor in read_weights(index, meta=True).state_dict.values())


@pytest.mark.parametrize("shard", ["../one.safetensors", "/etc/passwd", "..", "", "a/b", "a\\b", "a\0b"])
def test_a_shard_lies_beside_its_index(shard, index):
    (index.parent / "inner").mkdir()
    path = shutil.move(index, index.parent / "inner" / index.name)
    written(path.parent, {"a": shard})
    with pytest.raises(FileRefusedError, match="does not lie beside it"):
        read_weights(path)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"a": "one.safetensors", "b.c": "three.safetensors"}, "three.safetensors', which is not there"),
        ({"a": "one.safetensors", "b": "two.safetensors"}, "two.safetensors: holds other tensors"),
        ({"a": "one.safetensors", "x": "one.safetensors"}, "one.safetensors: holds other tensors"),
        ({}, "no `weight_map`"),
        ([1], "no `weight_map`"),
        ({"a": 1}, "no `weight_map`"),
    ],
)
def test_an_index_that_is_wrong(table, message, index):
    written(index.parent, table)
    with pytest.raises(FileRefusedError, match=message):
        read_weights(index)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tf_model.h5", "from_tf=True"), ("flax_model.msgpack", "from_flax=True"), ("x.gguf", "safetensors files"),
        ("__0_0.distcp", "dcp_to_torch"), ("MLmodel", "data/model.pth"),
        ("model.ckpt.index", "the program that wrote them"), ("x.onnx", "exported from"), ("a.txt", "without weights"),
    ],
)  # fmt: skip
def test_a_folder_without_weights_says_what_to_do(name, message, tmp_path):
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(FileRefusedError, match=message):
        read_weights(tmp_path)


def test_a_folder_with_two_files_of_weights_asks_which(tmp_path):
    for name, tensors in PARTS.items():
        save_file(tensors, tmp_path / name)
    with pytest.raises(FileRefusedError, match=r"one\.safetensors, two\.safetensors; name one: --weights FILE"):
        read_weights(tmp_path)


@pytest.mark.parametrize(
    ("names", "expected", "prefix"),
    [
        (["net.a.w", "net.b.w"], ["a.w", "b.w"], "net."),
        (["x.net.a.w", "x.net.b.w"], ["a.w", "b.w"], "x.net."),
        (["net.a.w", "loss.w"], ["a.w", "b.w"], ""),
        (["net.a.w", "net.b.w"], ["net.a.w", "net.b.w"], ""),
        (["a.w", "a.b"], ["x", "y"], ""),
        ([], ["a"], ""),
    ],
)
def test_the_prefix_in_common(names, expected, prefix):
    assert common_prefix(names, expected) == prefix


@pytest.mark.parametrize("size", range(1, 40))
def test_a_header_of_any_length_is_told_from_a_pickle(size, tmp_path):
    """One of 640 bytes begins as pickles do."""
    save_file({"a" * (16 * size): torch.ones(2)}, tmp_path / "m.bin")
    assert len(read_weights(tmp_path / "m.bin").state_dict) == 1
