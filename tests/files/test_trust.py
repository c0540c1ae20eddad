"""The narrow places: what is judged by what it is, not only by where it is named."""

import enum
import sys
import types

import numpy as np
import pytest
from torch import nn

from bayesify.errors import FileRefusedError
from bayesify.files.load_model import load_model
from bayesify.files.untrusted.global_names import Name
from bayesify.files.untrusted.trust import Refused, Trusted, judge
from tests.files.made_files import Evil, saved


def test_a_function_of_an_imported_module_is_never_offered_by_allow():
    assert judge(Name("numpy", "apply_along_axis"), ()) == Refused(never=True)
    assert judge(Name("numpy", "ndarray.sort"), ()) == Refused(never=True)
    assert judge(Name("afar.models", "Net"), ()) == Refused(never=False)


def test_what_a_library_only_re_exports_is_not_the_librarys(vision):
    api = __import__("torchvision.models._api", fromlist=["Enum"])
    assert api.Enum is enum.Enum
    assert judge(Name("torchvision.models._api", "Enum"), ()) == Refused()


@pytest.mark.parametrize(
    ("owner", "name"), [("lazy", "forward"), ("lazy", "__class__"), ("linear", "_infer_parameters"), ("lazy", "load")]
)
def test_getattr_reaches_the_hooks_of_lazy_layers_only(owner, name, file):
    model = nn.Sequential(nn.LazyLinear(2) if owner == "lazy" else nn.Linear(2, 2))
    model.extra = Evil(getattr, model[0], name)
    with pytest.raises(FileRefusedError, match=f"reads the attribute '{name}'"):
        load_model(file(saved(model)))


GLOBALS = [
    Name("torch.nn", "Linear.forward"), Name("torch._C", "_VariableFunctionsClass.from_file"), Name("torch", "os")
]  # fmt: skip


@pytest.mark.parametrize("name", GLOBALS, ids=str)
def test_getattr_of_a_global_is_a_global_of_its_own(name):
    assert judge(name, ()) == Refused()


NUMBERS = {
    "big-endian": np.array(2.5, ">f8")[()],
    "half": np.float16(1.5),
    "date": np.datetime64("2020-01-01"),
    "text": np.array(["a", "bc"]),
    "columns first": np.asfortranarray(np.arange(6).reshape(2, 3)),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_numpys_numbers_are_read_as_they_are(name, file):
    model = nn.Identity()
    model.extra = NUMBERS[name]
    opened = load_model(file(saved(model)))
    assert np.array_equal(opened.extra, model.extra)
    assert opened.extra.dtype == model.extra.dtype


def test_numpys_objects_are_refused(file):
    model = nn.Identity()
    model.extra = np.array([print, len])
    with pytest.raises(FileRefusedError):
        load_model(file(saved(model)))


def coder(**methods):
    """A class of torchvision's models, made here, whose objects stand beside layers."""
    return type("Coder", (), {"__module__": "torchvision.models.made_here", "__init__": lambda self: None, **methods})


HELPERS = {
    "methods with names of its own": (coder(encode=lambda self, boxes: boxes), True),
    "a text of itself": (coder(__repr__=lambda self: "Coder()"), True),
    "a call": (coder(__call__=lambda self: None), False),
    "an index": (coder(__getitem__=lambda self, key: key), False),
    "a state setter": (coder(__setstate__=lambda self, state: None), False),
    "attributes that are computed": (coder(__getattr__=lambda self, name: name), False),
    "an end": (coder(__del__=lambda self: None), False),
    "a base": (type("Coder", (coder(),), {"__module__": "torchvision.models.made_here"}), False),
}


@pytest.mark.parametrize("what", HELPERS)
def test_objects_beside_layers_are_built_if_they_do_nothing_by_themselves(what, monkeypatch):
    cls, trusted = HELPERS[what]
    module = types.ModuleType("torchvision.models.made_here")
    module.Coder = cls
    monkeypatch.setitem(sys.modules, module.__name__, module)
    verdict = judge(Name(module.__name__, "Coder"), ())
    assert (verdict == Trusted("plain", cls)) == trusted
    assert isinstance(verdict, Trusted) == trusted
