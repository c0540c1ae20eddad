"""A model is built by the user's code, on meta where that can be, and filled from a file."""

import sys

import pytest
import torch
from torch import nn

from bayesify.errors import FactoryError, FileRefusedError, UsageError
from bayesify.files.model_factory import build_model, parse_args
from tests.files.made_files import saved

SOURCE = """
import torch
from torch import nn

calls = []

def net(width=3, fail=False):
    calls.append(torch.empty(0).device.type)
    if fail:
        raise ValueError("no such\\nwidth")
    return nn.Sequential(nn.Linear(2, width), nn.BatchNorm1d(width)).eval()

class Masked(nn.Module):
    def __init__(self, kind):
        super().__init__()
        calls.append(torch.empty(0).device.type)
        self.fc = nn.Linear(2, 2)
        if kind == "buffer":
            self.register_buffer("mask", torch.arange(2.0), persistent=False)
        elif kind == "attribute":
            self.scales = {"a": [torch.arange(2.0)]}
        elif kind == "item":
            self.rate = torch.linspace(0, 1, 3)[1].item()
        elif kind == "device":
            self.where = torch.empty(0).device
        elif kind == "to":
            self.to("cpu")

def number():
    return 3

class Holder:
    @staticmethod
    def net():
        return net()

constant = 3
"""


@pytest.fixture
def zoo(package):
    package.write("zoo", SOURCE)
    with package.imported("zoo") as models:
        yield models


@pytest.fixture
def away(package):
    """The package is in the current directory and was not imported."""
    package.write("zoo", SOURCE)


def test_a_factory_in_the_current_directory(away):
    before = list(sys.path)
    model = build_model("zoo.models:net", {"width": 5})
    assert model[0].out_features == 5
    assert not model.training
    assert not model[0].weight.is_meta
    assert sys.path == before
    assert isinstance(build_model("zoo.models:Holder.net"), nn.Sequential)


@pytest.mark.parametrize("old", [False, True], ids=["zip", "old"])
def test_weights_are_assigned_to_a_model_built_on_meta(old, away, file):
    model = build_model("zoo.models:net")
    path = file(saved({"epoch": 1, "model": {f"module.{n}": v + 1 for n, v in model.state_dict().items()}}, old))
    built = build_model("zoo.models:net", weights=path)
    assert all(torch.equal(value, model.state_dict()[name] + 1) for name, value in built.state_dict().items())
    assert not built.training
    assert sys.modules["zoo.models"].calls == ["cpu", "meta"]
    planned = build_model("zoo.models:net", weights=path, meta=True)
    assert all(value.is_meta for value in planned.state_dict().values())
    assert all(value.is_meta for value in build_model("zoo.models:net", meta=True).state_dict().values())


@pytest.mark.parametrize("kind", ["buffer", "attribute", "item", "device", "to"])
def test_what_meta_would_lose_is_built_for_real(kind, away, file):
    real = build_model("zoo.models:Masked", {"kind": kind})
    path = file(saved({name: value + 1 for name, value in real.state_dict().items()}))
    built = build_model("zoo.models:Masked", {"kind": kind}, weights=path)
    assert torch.equal(built.fc.weight, real.fc.weight * 0 + torch.load(path, weights_only=True)["fc.weight"])
    assert not any(value.is_meta for value in [*built.parameters(), *built.buffers()])
    if kind == "buffer":
        assert torch.equal(built.mask, torch.arange(2.0))
    if kind == "attribute":
        assert torch.equal(built.scales["a"][0], torch.arange(2.0))
    if kind == "device":
        assert built.where.type == "cpu"
    assert build_model("zoo.models:Masked", {"kind": kind}, weights=path, meta=True) is not None


def test_ignored_keys_are_initialised_by_the_factory(away, file):
    state = build_model("zoo.models:net").state_dict()
    path = file(saved({name: value for name, value in state.items() if not name.startswith("0.")}))
    with pytest.raises(FileRefusedError, match=r"misses 2 \(0.weight, 0.bias\).*--ignore-keys"):
        build_model("zoo.models:net", weights=path)
    built = build_model("zoo.models:net", weights=path, ignore_keys=["0.*"])
    assert not built[0].weight.is_meta
    assert built[0].weight.abs().sum() > 0


@pytest.mark.parametrize(
    ("spec", "args", "error", "words"),
    [
        ("zoo.models:nte", {}, FactoryError, r"Did you mean 'net'"),
        ("zoo.modles:net", {}, FactoryError, r"no module 'zoo.modles'. Did you mean 'models'"),
        ("zooo.models:net", {}, FactoryError, r"no module 'zooo'. Did you mean 'zoo'"),
        ("zoo.models:constant", {}, FactoryError, "is a int, not a callable"),
        ("zoo.models:number", {}, FactoryError, "returns a int, not an nn.Module"),
        ("zoo.models:net", {"fail": True}, FactoryError, "ValueError: no such"),
        ("zoo.models:net", {"widht": 3}, FactoryError, r"Did you mean 'width'.*--arg"),
        ("zoo.broken:net", {}, FactoryError, "importing zoo.broken fails: SyntaxError"),
        ("zoo.exits:net", {}, FactoryError, "importing zoo.exits fails: SystemExit"),
        ("zoo.needs:net", {}, FactoryError, "importing zoo.needs fails: .*'absent'"),
        ("zoo.models", {}, UsageError, "package.module:callable"),
        ("zoo models:net", {}, UsageError, "package.module:callable"),
        (":net", {}, UsageError, "package.module:callable"),
    ],
)
def test_a_factory_that_fails_is_one_line(spec, args, error, words, zoo, package):
    (package.folder / "zoo" / "broken.py").write_text("def net(:")
    (package.folder / "zoo" / "exits.py").write_text("raise SystemExit(0)")
    (package.folder / "zoo" / "needs.py").write_text("import absent")
    with pytest.raises(error, match=words) as caught:
        build_model(spec, args)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == (4 if error is FactoryError else 2)


def test_args_are_yaml():
    pairs = [
        "num_classes=10",
        "weights=null",
        "name=resnet",
        "lr=1e-3",
        "dims=[1, 2]",
        "on=off",
        "yes=true",
        "empty=",
        "eq=a=b",
    ]
    assert parse_args(pairs) == {
        "num_classes": 10, "weights": None, "name": "resnet", "lr": 1e-3, "dims": [1, 2], "on": "off",
        "yes": True, "empty": "", "eq": "a=b",
    }  # fmt: skip


LONG = [f"x={'9' * 5000}", f"x={'[' * 3000}"]


@pytest.mark.parametrize("pair", ["novalue", "=3", "a b=3", "x=[1", "x={a: b: c}", "x=*a", *LONG])
def test_args_that_are_wrong(pair):
    with pytest.raises(UsageError, match="--arg") as caught:
        parse_args([pair])
    assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="twice"):
        parse_args(["a=1", "a=2"])


def test_torchvisions_own_call(vision, file):
    model = vision.models.resnet18(num_classes=10)
    path = file(saved(model.state_dict()))
    built = build_model("torchvision.models:resnet18", {"num_classes": 10, "weights": None}, weights=path)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in built.state_dict().items())
    with pytest.raises(FileRefusedError, match=r"fc.weight is 10x512, the model.s 1000x512"):
        build_model("torchvision.models:resnet18", weights=path)
