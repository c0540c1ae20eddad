"""What everyday models hold beside their weights opens as it was, for many threads at once."""

import argparse
import collections
import concurrent.futures
import datetime
import decimal
import fractions
import pathlib
import types
import uuid

import numpy as np
import pytest
import torch
from torch import nn

import bayesify
from bayesify.errors import FileRefusedError, UsageError
from bayesify.files.load_model import load_model
from bayesify.files.read_weights import read_weights
from tests.files.made_files import net, saved

EVERYDAY = {
    "array": np.arange(6).reshape(2, 3), "path": pathlib.Path("a/b"), "date": datetime.datetime(2020, 1, 2),
    "zone": datetime.timezone.utc, "delta": datetime.timedelta(1), "deque": collections.deque([1, 2], 3),
    "namespace": argparse.Namespace(lr=0.1), "simple": types.SimpleNamespace(a=1),
    "counter": collections.Counter("aab"), "decimal": decimal.Decimal("1.5"),
    "defaultdict": collections.defaultdict(list, {"a": [1]}), "ordered": collections.OrderedDict(a=1), "set": {1, 2},
    "frozen": frozenset({1}), "range": range(3), "slice": slice(1, None), "complex": 1j,
    "fraction": fractions.Fraction(1, 3), "uuid": uuid.UUID(int=5), "size": torch.Size([2]), "dtype": torch.float16,
    "device": torch.device("cuda:1"), "bytes": b"ab", "bytearray": bytearray(b"ab"), "scalar": np.float32(2),
    "infinity": float("inf"), "sparse": torch.eye(3).to_sparse(), "nested": {"a": [({1: None}, "x")]},
}  # fmt: skip


@pytest.mark.parametrize("old", [False, True], ids=["zip", "old"])
@pytest.mark.parametrize("name", EVERYDAY)
def test_everyday_attributes_are_kept(name, old, file):
    model = nn.Identity()
    model.extra = EVERYDAY[name]
    opened = load_model(file(saved(model, old)))
    assert type(opened.extra) is type(model.extra)
    if isinstance(model.extra, torch.Tensor):
        assert torch.equal(opened.extra.to_dense(), model.extra.to_dense())
    else:
        assert np.array_equal(opened.extra, model.extra) if name == "array" else opened.extra == model.extra


def test_a_generator_goes_on_where_it_was(file):
    model = nn.Identity()
    model.generator = torch.Generator().manual_seed(3)
    torch.rand(5, generator=model.generator)
    opened = load_model(file(saved(model)))
    assert torch.equal(torch.rand(3, generator=opened.generator), torch.rand(3, generator=model.generator))


def test_many_threads_open_at_once(file):
    paths = [file(saved(net()), f"{number}.pt") for number in range(4)]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert all(isinstance(model, nn.Sequential) for model in pool.map(load_model, paths * 10))


def test_hooks_of_an_opened_model_are_not_overwritten_by_the_next(file):
    path = file(saved(bayesify.convert(net())))
    opened = load_model(path)
    for _ in range(200):
        opened[0].register_forward_hook(lambda *_: None)
    opened(torch.ones(2, 4))
    assert opened.kl(reached=True) == opened.kl()


@pytest.mark.parametrize("form", ["zip", "weights"])
def test_no_flipped_bit_passes_for_other_weights(form, file):
    value = net() if form == "zip" else net().state_dict()
    content = saved(value)
    expected = value.state_dict() if form == "zip" else value
    generator = torch.Generator().manual_seed(0)
    for place in torch.randint(0, len(content) * 8, (300,), generator=generator).tolist():
        changed = bytearray(content)
        changed[place // 8] ^= 1 << place % 8
        path = file(bytes(changed))
        try:
            found = load_model(path).state_dict() if form == "zip" else read_weights(path).state_dict
        except (FileRefusedError, UsageError):
            continue
        assert list(found) == list(expected)
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    for size in torch.randint(0, len(content), (100,), generator=generator).tolist():
        with pytest.raises(FileRefusedError):
            read_weights(file(content[:size]))
