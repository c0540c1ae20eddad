"""Example inputs from the command line: shapes, and files that are read as data."""

import os

import pytest
import torch
from torch import nn

import bayesify
from bayesify.cli.input_options import parse_inputs, read_inputs
from bayesify.errors import FileRefusedError, UsageError
from tests.files.made_files import Evil


def test_shapes():
    (x,) = parse_inputs(["2x3x4"])
    assert (x.shape, x.dtype) == ((2, 3, 4), torch.float32)
    x, ids = parse_inputs(["float:2x3", "int:2x16"])
    assert (ids.dtype, ids.unique().tolist()) == (torch.int64, [0, 1])
    named = parse_inputs(["input_ids=int:1x16", "attention_mask=mask:1x16"])
    assert {name: x.dtype for name, x in named.items()} == {
        "input_ids": torch.int64, "attention_mask": torch.bool
    }  # fmt: skip
    first, second = parse_inputs(["x=5xNx4", "mask=mask:Nx5"])
    assert {name: tuple(x.shape) for name, x in first.items()} == {"x": (5, 2, 4), "mask": (2, 5)}
    assert {name: tuple(x.shape) for name, x in second.items()} == {"x": (5, 3, 4), "mask": (3, 5)}
    rows = bayesify.plan(nn.Linear(4, 2), example_inputs=parse_inputs(["3x4"])).rows
    assert rows[0].notes == ("called once, (3, 4)",)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["2,3"], "'2,3' is not a shape"),
        (["2x"], "is not a shape"),
        (["2xM"], "is not a shape"),
        (["flaot:2x3"], "Did you mean 'float'"),
        (["x=2x3", "2x3"], "to each of the inputs, or to none"),
    ],
)
def test_what_is_no_shape(texts, message):
    with pytest.raises(UsageError, match=message):
        parse_inputs(texts)


X = torch.ones(2, 3)


@pytest.mark.parametrize("content", [X, (X, 3), {"x": X, "flag": True}, [X, X[:1]]])
def test_files(tmp_path, content):
    torch.save(content, tmp_path / "batch.pt")
    torch.testing.assert_close(read_inputs(tmp_path / "batch.pt"), content)


@pytest.mark.parametrize("content", [nn.Linear(2, 2), {"x": [nn.Linear(2, 2)]}, 3, Evil(os.system, "touch planted")])
def test_files_that_hold_more_than_data(tmp_path, content, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(content, "batch.pt")
    with pytest.raises(FileRefusedError):
        read_inputs("batch.pt")
    assert not os.path.exists("planted")
