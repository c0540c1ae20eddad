"""What models hold beside their layers is saved and opened again as it is, or `save` says at once that it cannot be."""

import argparse
import collections
import datetime
import enum
import functools
import logging
import operator
import re
import types
import typing
import uuid
import warnings
import zoneinfo

import numpy as np
import pytest
import torch
from torch import nn

import bayesify
from bayesify.errors import FileRefusedError, UsageError
from tests.files.made_files import net
from tests.files.test_everyday_models import EVERYDAY

HERE = __name__
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch's, of a new layout
    CSR = torch.eye(3).to_sparse_csr()


class Ordered(collections.OrderedDict):
    pass


class Text(str):
    pass


class Whole(int):
    pass


class Pair(tuple):
    pass


class Names(set):
    pass


class Kind(enum.Enum):
    RED = 1


class Mode(enum.Flag):
    READ = 1
    WRITE = 2


class Point(typing.NamedTuple):
    x: int


class Plain:
    __slots__ = ("held",)

    def __init__(self):
        self.held = [1]

    def __eq__(self, other):
        return self.held == other.held

    __hash__ = None


class Carrier(nn.Module):
    def __init__(self, extra):
        super().__init__()
        self.inner = net()
        self.extra = extra

    def forward(self, x):
        return self.inner(x)

    def method(self):
        return self


def convert_units(value):
    return value


KEPT = EVERYDAY | {
    "ordered subclass": Ordered(a=1), "text subclass": Text("a"), "number subclass": Whole(3),
    "tuple subclass": Pair((1, 2)), "set subclass": Names([1]), "named tuple": Point(1), "slots": Plain(),
    "member": Kind.RED, "flags": Mode.READ | Mode.WRITE, "class of numbers": np.float32, "csr": CSR,
    "zone": zoneinfo.ZoneInfo("UTC"), "logger": logging.getLogger("bayesify.tests"), "ellipsis": ...,
    "partial": functools.partial(nn.LayerNorm, eps=1e-6), "activation": nn.functional.gelu,
    "storage": torch.ones(3).untyped_storage(), "generator": torch.Generator(),
    "imaginary": torch.ones(2, dtype=torch.complex64).conj().imag, "layers as keys": {nn.ReLU(): 1},
    "nested": argparse.Namespace(a=types.SimpleNamespace(b=1)),
    "keys": {datetime.date(2020, 1, 1): 1, uuid.UUID(int=3): 2, np.int64(4): 3, 1 << 62: 4, range(3): 5, Kind.RED: 6},
}  # fmt: skip

NOT_KEPT = {
    "lambda": lambda x: x, "function": convert_units, "reducer": torch.sum, "getter": operator.itemgetter(1),
    "partial": functools.partial(convert_units, 1), "pattern": re.compile("a"),
    "default": collections.defaultdict(Plain), "chain": collections.ChainMap({}), "objects": np.array([1, None]),
    "optimizer": torch.optim.SGD(net().parameters()), "random": np.random.default_rng(0), "nested": {"a": [max]},
}  # fmt: skip

ALLOWED = [f"{HERE}.{cls}" for cls in ("Carrier", "Ordered", "Text", "Whole", "Pair", "Names", "Kind", "Mode", "Point",
                                       "Plain")]  # fmt: skip


def saved(extra, converted, path):
    model = Carrier(extra)
    bayesify.save(bayesify.convert(model, inplace=True) if converted else model, path)
    return model


@pytest.mark.parametrize("converted", [False, True], ids=["plain", "converted"])
@pytest.mark.parametrize("name", KEPT)
def test_an_attribute_is_opened_as_it_was_saved(name, converted, tmp_path):
    model = saved(KEPT[name], converted, tmp_path / "m.pt")
    mine, opened = model.extra, bayesify.load(tmp_path / "m.pt", allow=ALLOWED).extra
    assert type(opened) is type(mine)
    if isinstance(mine, torch.Tensor):
        assert torch.equal(opened.to_dense(), mine.to_dense())
    elif isinstance(mine, torch.Generator):
        assert torch.equal(opened.get_state(), mine.get_state())
    elif isinstance(mine, torch.UntypedStorage):
        assert list(opened) == list(mine)
    elif name in ("array", "partial", "layers as keys"):
        assert str(opened) == str(mine)
    else:
        assert opened == mine


@pytest.mark.parametrize("converted", [False, True], ids=["plain", "converted"])
@pytest.mark.parametrize("name", [*NOT_KEPT, "method"])
def test_save_says_which_attribute_cannot_be_kept_and_which_way_is_open(name, converted, tmp_path):
    model = Carrier(NOT_KEPT.get(name))
    if name == "method":
        model.extra = model.method
    model = bayesify.convert(model, inplace=True) if converted else model
    with pytest.raises(UsageError, match=r"the model holds extra = .*factory=.*structure=False") as caught:
        bayesify.save(model, tmp_path / "m.pt")
    assert "\n" not in str(caught.value)
    assert "save it again" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    bayesify.save(model, tmp_path / "m.pt", structure=False)
    bayesify.save(model, tmp_path / "f.pt", factory=f"{HERE}:Carrier", args={"extra": None})
    for opened in (
        bayesify.load(tmp_path / "m.pt", into=Carrier(NOT_KEPT.get(name))),
        bayesify.load(tmp_path / "f.pt", allow=f"{HERE}:Carrier"),
    ):
        assert type(opened.inner[0]) is type(model.inner[0])
        assert torch.equal(opened.inner[0].weight, model.inner[0].weight)


def test_a_model_that_torch_saved_with_a_function_says_how_its_weights_are_had(tmp_path):
    model, path = Carrier(torch.sum), tmp_path / "my net.pt"
    torch.save(model, path)
    with pytest.raises(FileRefusedError, match=rf"into=network\), or bayesify convert .* --weights '{path}'"):
        bayesify.load(path, allow=ALLOWED)
    opened = bayesify.load(path, into=Carrier(None))
    assert torch.equal(opened.inner[0].weight, model.inner[0].weight)


def test_keys_of_one_hash_are_refused_quickly(tmp_path):
    alike = {complex(1_000_003 * (1 << 20) - 1_000_003 * k, k): None for k in range(200)}
    assert len({hash(key) for key in alike}) == 1
    with pytest.raises(UsageError, match="many keys of one hash"):
        saved(alike, False, tmp_path / "m.pt")


class Clever:
    def __init__(self, value):
        self.value = value

    def __hash__(self):
        return hash(self.value)

    def __eq__(self, other):
        return self.value == other.value


def test_a_key_that_its_class_compares_is_refused(tmp_path):
    with pytest.raises(UsageError, match="a Clever for a key"):
        saved({Clever(1): 2}, False, tmp_path / "m.pt")
