"""A model is written whole or not at all, and opens again."""

import os

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import bayesify
from bayesify.errors import UsageError
from bayesify.files.load_model import load_model as load
from bayesify.files.save import save
from tests.files.made_files import net


def test_what_was_saved_opens_again(tmp_path):
    model = net().eval()
    save(model, tmp_path / "m.pt")
    assert torch.equal(load(tmp_path / "m.pt")(torch.ones(2, 4)), model(torch.ones(2, 4)))
    assert os.listdir(tmp_path) == ["m.pt"]


def test_the_file_has_the_permissions_of_any_new_file(tmp_path):
    old = os.umask(0o027)
    try:
        save(net(), tmp_path / "m.pt")
    finally:
        os.umask(old)
    assert (tmp_path / "m.pt").stat().st_mode & 0o777 == 0o640


class Local(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(2, 2))
        self.inner.act = lambda x: x


def local_class():
    class Hidden(nn.Module):
        pass

    return nn.Sequential(Hidden())


def graph():
    return nn.Sequential(torch.fx.symbolic_trace(nn.Sequential(nn.Linear(2, 2))))


UNSAVED = [(Local, "inner holds act"), (local_class, "0 is of class .*Hidden"), (graph, "is a torch.fx graph")]


@pytest.mark.parametrize(("build", "words"), UNSAVED)
def test_a_model_that_cannot_be_pickled_leaves_the_old_file(build, words, tmp_path):
    path = tmp_path / "m.pt"
    path.write_bytes(b"old")
    with pytest.raises(UsageError, match=words) as caught:
        save(build(), path)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["m.pt"]


def test_the_culprit_is_named_in_a_converted_model_too(tmp_path):
    parametrized = nn.Sequential(nn.Linear(2, 2), parametrizations.weight_norm(nn.Linear(2, 2)))
    for model, words in ((Local(), "inner holds act"), (parametrized, "1 is parametrized.*state_dict")):
        with pytest.raises(UsageError, match=words):
            save(bayesify.convert(model), tmp_path / "m.pt")


def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    def full(model, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UsageError, match="No space left"):
        save(net(), tmp_path / "m.pt")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("place", [".", "none/m.pt", "pipe", "file/m.pt", "x" * 300])
def test_places_that_cannot_be_written(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match=place[:40] if place != "." else "folder"):
        save(net(), place)


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "real.pt").write_bytes(b"")
    (tmp_path / "m.pt").symlink_to(tmp_path / "real.pt")
    save(net(), tmp_path / "m.pt")
    assert (tmp_path / "m.pt").is_symlink()
    assert isinstance(load(tmp_path / "real.pt"), nn.Sequential)
