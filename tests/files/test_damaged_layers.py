"""A layer any of whose attributes is of a wrong kind is refused, or opens, plans and converts: never another error."""

import collections
import contextlib
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import bayesify
from bayesify.files.load_model import load_model
from bayesify.surgery.convert import carry_out
from tests.files.made_files import saved

LAYERS = {
    "Linear": lambda: nn.Linear(2, 2), "Conv2d": lambda: nn.Conv2d(2, 2, 1), "LSTM": lambda: nn.LSTM(2, 2),
    "ConvTranspose1d": lambda: nn.ConvTranspose1d(2, 2, 1), "BatchNorm": lambda: nn.BatchNorm1d(2),
    "attention": lambda: nn.MultiheadAttention(2, 1), "Bilinear": lambda: nn.Bilinear(2, 2, 2),
    "pruned": lambda: prune.l1_unstructured(nn.Linear(2, 2), "weight", 0.5), "Embedding": lambda: nn.Embedding(2, 2),
    "FlipoutLinear": lambda: bayesify.convert(nn.Linear(2, 2)),
    "LRTLSTM": lambda: bayesify.convert(nn.LSTM(2, 2), "lrt"),
}  # fmt: skip
WRONG = {
    "None": None, "-1": -1, "text": "x", "list": [], "dict": {"x": 1}, "tuple": (), "tensor": torch.ones(2),
    "Parameter": nn.Parameter(torch.ones(3, 5, 2)), "single": nn.Parameter(torch.tensor(1.0)),
    "module": nn.ReLU(), "function": nn.functional.relu, "meta": torch.ones(2, device="meta"),
    "ordered": collections.OrderedDict(), "huge": 1 << 70,
}  # fmt: skip
PARTS = ("_parameters", "_buffers", "_modules")


def places(layer: nn.Module):
    """Every attribute of a layer, and every entry of its tables."""
    yield from (("", name) for name in vars(layer))
    yield from ((table, name) for table in PARTS for name in getattr(layer, table))


def answer(content, path) -> str:
    """How it went: only errors of ours may come through."""
    path.write_bytes(content)
    try:
        model = load_model(path)
        if any(isinstance(module, bayesify.nn.FlipoutLinear | bayesify.nn.LRTLSTM) for module in model.modules()):
            bayesify.save(model, path)
            str(bayesify.revert(model))
        else:
            carry_out(bayesify.plan(model), model, inplace=True)
    except bayesify.BayesifyError:
        return "refused"
    return "opened"


@pytest.mark.parametrize("name", LAYERS)
def test_every_attribute_of_a_wrong_kind(name, tmp_path):
    answers = collections.Counter()
    for number, (table, attribute) in enumerate(places(LAYERS[name]())):
        for shift, wrong in enumerate(WRONG.values()):
            if (number + shift) % 2:  # half of the pairs: each attribute with seven kinds
                continue
            layer = LAYERS[name]()
            (vars(layer)[table] if table else vars(layer))[attribute] = wrong
            model = nn.Sequential(nn.Identity(), nn.Linear(2, 2))
            model._modules["0"] = layer
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    content = saved(model)
                except Exception:
                    continue  # torch itself does not write this one
                answers[answer(content, tmp_path / "m.pt")] += 1
    assert min(answers["refused"], answers["opened"]) > 5


@pytest.mark.parametrize("name", LAYERS)
def test_every_attribute_that_is_not_there(name, tmp_path):
    """Refused, or everything that asks a model what it is goes well."""
    path = tmp_path / "m.pt"
    for table, attribute in places(LAYERS[name]()):
        layer = LAYERS[name]()
        del (vars(layer)[table] if table else vars(layer))[attribute]
        model = nn.Sequential(nn.Identity(), nn.Linear(2, 2))
        model._modules["0"] = layer
        with contextlib.suppress(AttributeError, KeyError, RecursionError):  # torch itself does not write this one
            path.write_bytes(saved(model))
        for ask in (bayesify.plan, bayesify.inspect, bayesify.revert):
            with contextlib.suppress(bayesify.BayesifyError), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                ask(load_model(path))
