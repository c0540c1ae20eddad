"""Weights as people have them are found, read as data, and named as the model names them."""

import argparse
import collections
import datetime
import enum
import io
import pathlib
import sys
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from bayesify.errors import FileRefusedError, UsageError
from bayesify.files.load_model import load_model
from bayesify.files.read_weights import read_weights
from tests.files.made_files import edit_pickle, net, saved

STATE = net().state_dict()


def same(found, expected=STATE) -> bool:
    return list(found) == list(expected) and all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("old", [False, True], ids=["zip", "old"])
def test_a_state_dict_in_both_formats_whatever_the_name(old, file):
    for name in ("w.safetensors", "w.txt", "w"):
        found = read_weights(file(saved(STATE, old), name))
        assert same(found.state_dict)
        assert (found.key, found.stripped, found.notes) == ("", (), ())


def test_safetensors_under_a_wrong_name(tmp_path):
    save_file(dict(STATE), tmp_path / "w.pt")
    assert same(dict(sorted(read_weights(tmp_path / "w.pt").state_dict.items())), dict(sorted(STATE.items())))


@pytest.mark.parametrize("old", [False, True], ids=["zip", "old"])
def test_weights_that_were_on_a_gpu(old, file):
    content = saved(STATE, old)
    moved = content.replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0") if old else None
    moved = moved or edit_pickle(content, b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0")
    assert moved != content
    found = read_weights(file(moved)).state_dict
    assert same(found)
    assert all(value.device.type == "cpu" for value in found.values())


@pytest.mark.parametrize("form", ["zip", "old", "safetensors"])
def test_meta_reads_shapes_and_no_data(form, file, tmp_path):
    if form == "safetensors":
        save_file(dict(STATE), tmp_path / "w")
    path = tmp_path / "w" if form == "safetensors" else file(saved(STATE, form == "old"))
    found = read_weights(path, meta=True).state_dict
    assert all(value.is_meta and value.dtype == STATE[name].dtype for name, value in found.items())
    assert {name: value.shape for name, value in found.items()} == {name: value.shape for name, value in STATE.items()}


OPTIMIZER = {"state": {0: {"exp_avg": torch.ones(3), "step": torch.tensor(1.0)}}, "param_groups": [{"lr": 0.1}]}
NAMED_OPTIMIZER = {"state": {"0.weight": {"exp_avg": torch.ones(3)}}, "param_groups": []}


@pytest.mark.parametrize(
    ("checkpoint", "key"),
    [
        ({"state_dict": STATE, "epoch": 3, "optimizer_states": [OPTIMIZER], "loss": torch.tensor(0.1)}, "state_dict"),
        ({"model": STATE, "optimizer": NAMED_OPTIMIZER}, "model"),
        ({"model_state": STATE, "optim": {"adam": {"exp_avg": torch.ones(9)}}}, "model_state"),
        ({"model": {"state_dict": STATE, "config": {"lr": 1}}}, "model.state_dict"),
        ({"step": 1, "anything": {"deep": {"er": STATE}}}, "anything.deep.er"),
        ({"model.state_dict": STATE, "epoch": 1}, "model.state_dict"),
        ({"any": STATE, "optimizer": {"master": {"a": torch.ones(9)}}}, "any"),
        ({"any": STATE, "extra": {"exp_avg": torch.ones(9)}}, "any"),
        ({"net": STATE, "criterion": {"weight": torch.ones(1)}}, "net"),
    ],
)
def test_a_state_dict_inside_a_checkpoint_is_found(checkpoint, key, file):
    found = read_weights(file(saved(checkpoint)))
    assert found.key == key
    assert same(found.state_dict)
    assert f"took the weights under {key!r}" in found.notes
    assert same(read_weights(file(saved(checkpoint)), key=key).state_dict)


def test_where_it_is_not_clear_the_candidates_are_listed_and_key_names_one(file):
    path = file(saved({"model": STATE, "ema": {"shadow": STATE}}))
    with pytest.raises(FileRefusedError, match=r"model \(9 tensors\), ema.shadow \(9 tensors\); .*--key model"):
        read_weights(path)
    assert same(read_weights(path, key="ema.shadow").state_dict)
    with pytest.raises(UsageError, match=r"Did you mean 'model'\?"):
        read_weights(path, key="modle")


@pytest.mark.parametrize(
    ("prefix", "stripped"),
    [
        ("module.", ("module.",)),
        ("_orig_mod.", ("_orig_mod.",)),
        ("module._orig_mod.", ("module.", "_orig_mod.")),
        ("_orig_mod.module.", ("_orig_mod.", "module.")),
    ],
)
def test_wrappers_prefixes_are_stripped_and_said(prefix, stripped, file):
    found = read_weights(file(saved({f"{prefix}{name}": value for name, value in STATE.items()})))
    assert same(found.state_dict)
    assert found.stripped == stripped
    assert all(prefix in found.notes[-1] for prefix in stripped)


def test_a_compiled_part_and_an_averaged_model(file):
    inner = {f"head.{'_orig_mod.' if name[0] == '0' else ''}{name}": value for name, value in STATE.items()}
    assert same(read_weights(file(saved(inner))).state_dict, {f"head.{name}": value for name, value in STATE.items()})
    averaged = torch.optim.swa_utils.AveragedModel(net()).state_dict()
    assert same(read_weights(file(saved(averaged))).state_dict)


def test_a_module_prefix_that_not_every_name_has_stays(file):
    mixed = {"module.weight": torch.ones(2), "head.weight": torch.ones(2)}
    assert list(read_weights(file(saved(mixed))).state_dict) == list(mixed)


class Colour(enum.Enum):
    RED = 1


class AttributeDict(dict):
    """As Lightning's: a dict with attributes."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.note = "x"


class Track(list):
    pass


class Outer:
    class Inner:
        def __init__(self):
            self.a = 1


class Slotted:
    __slots__ = ("a",)

    def __init__(self):
        self.a = torch.ones(2)


Point = collections.namedtuple("Point", "x y")
omegaconf = pytest.importorskip("omegaconf")
FOREIGN = {
    "argparse": argparse.Namespace(lr=0.1, path=pathlib.Path("x")),
    "omegaconf": omegaconf.OmegaConf.create({"lr": 0.1, "layers": [1, 2], "deep": {"a": "${lr}"}}),
    "attribute dict": AttributeDict(lr=0.1),
    "list subclass": Track([1, 2]),
    "defaultdict": collections.defaultdict(list, {"a": [1]}),
    "deque": collections.deque([1, 2], maxlen=3),
    "numpy scalar": {"best": np.float64(0.5), "n": np.int64(3)},
    "numpy array": np.arange(3),
    "datetime": datetime.datetime(2020, 1, 1),
    "enum": Colour.RED,
    "named tuple": Point(1, 2),
    "nested class": Outer.Inner(),
    "slots": Slotted(),
    "set": {1, 2},
    "bytes": b"abc",
    "complex": 1j,
    "device": torch.device("cuda:0"),
    "dtype": torch.float16,
    "size": torch.Size([1]),
    "counter": collections.Counter("aab"),
    "sgd": torch.optim.SGD([nn.Parameter(torch.ones(1))], 0.1),
    "generator": np.random.default_rng(0).bit_generator.state,
}


@pytest.mark.parametrize("old", [False, True], ids=["zip", "old"])
@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_objects_beside_the_weights_are_read_as_data(name, old, file):
    assert same(read_weights(file(saved({"hyper": FOREIGN[name], "state_dict": STATE}, old))).state_dict)


def test_foreign_classes_are_never_imported(file, package):
    package.write("afar", "import pathlib\npathlib.Path('imported').touch()\nclass Config:\n    pass\n")
    with package.imported("afar") as models:
        content = saved({"config": models.Config(), "state_dict": STATE})
    pathlib.Path("imported").unlink()
    assert same(read_weights(file(content)).state_dict)
    assert "afar" not in sys.modules
    assert not pathlib.Path("imported").exists()


def test_the_weights_of_a_whole_pickled_model(file):
    class_free = read_weights(file(saved({"epoch": 1, "model": net()})))
    assert class_free.key == "model"
    assert dict(class_free.state_dict).keys() == STATE.keys()
    assert all(torch.equal(class_free.state_dict[name], STATE[name]) for name in STATE)
    old = read_weights(file(saved(net(), old=True)))
    assert all(torch.equal(old.state_dict[name], STATE[name]) for name in STATE)


def test_entries_that_are_no_tensors_are_left_out_and_said(file):
    found = read_weights(file(saved({**STATE, "epoch": 3, "arch": "net"})))
    assert same(found.state_dict)
    assert found.notes == ("left out 2 entries that are not tensors: arch, epoch",)


def test_a_file_that_is_not_there_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match="no such file"):
        read_weights(tmp_path / "none.pt")


@pytest.mark.parametrize("old", [False, True], ids=["zip", "old"])
def test_torchs_own_reader_is_never_asked_and_no_class_becomes_safe_for_it(old, file, monkeypatch):
    path = file(saved(STATE, old))
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: pytest.fail("torch.load was called"))
    before = set(torch.serialization.get_safe_globals())
    read_weights(path)
    assert set(torch.serialization.get_safe_globals()) == before

def test_the_archive_helper_makes_what_torch_makes(file):
    """The hand-made files of these tests are refused for what is wrong in them and for nothing else."""
    from tests.files.made_files import as_zip

    source = zipfile.ZipFile(io.BytesIO(saved(STATE)))
    records = {name.split("/", 1)[1]: source.read(name) for name in source.namelist() if "/data/" in name}
    pickle_name = next(name for name in source.namelist() if name.endswith("data.pkl"))
    assert same(read_weights(file(as_zip(source.read(pickle_name), records))).state_dict)


def test_tensors_with_attributes_of_their_own_are_each_their_own(file):
    """torch writes them by a call within a call, as it does an `nn.Buffer`."""
    model = nn.Module()
    for number in range(20):
        model.register_buffer(f"b{number}", nn.Buffer(torch.full((3,), float(number))))
    assert same(read_weights(file(saved(model.state_dict()))).state_dict, model.state_dict())
    opened = load_model(file(saved(model)))
    assert same(opened.state_dict(), model.state_dict())


def test_a_checkpoint_of_timm_has_two_sets_of_weights(file):
    averaged = {name: value + 1 for name, value in STATE.items()}
    content = {"epoch": 3, "arch": "resnet18", "state_dict": STATE, "state_dict_ema": averaged, "metric": 0.7}
    content |= {"args": argparse.Namespace(model="resnet18"), "optimizer": {"state": {}, "param_groups": []}}
    path = file(saved(content))
    with pytest.raises(FileRefusedError, match=r"state_dict_ema .* --weights FILE --key"):
        read_weights(path)
    assert same(read_weights(path, key="state_dict_ema").state_dict, averaged)
    assert same(read_weights(path, key="state_dict").state_dict)
