"""Saved files name what is pinned, and open after the code has moved."""

from __future__ import annotations

import io
import json
import pickle
import pickletools
import pkgutil
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

import bayesify
from bayesify.files.untrusted.saved_names import PINNED, PINNED_NAMES
from bayesify.nn.settings import Method

from ..support import METHODS


class Graphed(nn.Module):
    """Multiplies in its own forward, as a graph of it does."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Parameter(torch.randn(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x) @ self.second


Graphed.forward.__annotations__.clear()  # torch.fx would write them, as text, into the code that it pickles

MODELS: dict[str, Any] = {
    "layers": lambda: nn.Sequential(nn.Linear(3, 4), nn.Bilinear(2, 2, 2)),
    "convolutions": lambda: nn.Sequential(nn.Conv2d(1, 2, 2), nn.ConvTranspose1d(2, 2, 2)),
    "tables": lambda: nn.Sequential(nn.Embedding(4, 3, padding_idx=0), nn.EmbeddingBag(4, 3)),
    "recurrent": lambda: nn.Sequential(nn.LSTM(3, 4), nn.GRUCell(3, 4)),
    "attention": lambda: nn.TransformerEncoderLayer(8, 2, 8),
    "lazy": lambda: nn.Sequential(nn.LazyLinear(3), nn.LazyConv1d(2, 2)),
    "rerouted": lambda: nn.Sequential(Graphed(), nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 8), 1)),
    "graph": lambda: fx.symbolic_trace(Graphed()),
}
TARGETS = {"tables": {"rules": [{"targets": ["Embedding", "EmbeddingBag"]}]}}  # nothing else converts them
POLICIES: list[dict[str, Any]] = [
    {"bias": "variational", "prior": {"family": "scale_mixture"}},
    {"prior": {"family": "log_uniform"}, "posterior": {"parameterization": "multiplicative"}},
    {"prior": {"family": "normal", "mean": "pretrained", "std": {"fan_in": 1.0}}},
]


@contextmanager
def moved() -> Iterator[None]:
    """Every file of the pinned packages is gone from where it was; what is in them stays."""
    files = [name for name in sys.modules if name.startswith(tuple(f"{package}." for package in PINNED))]
    with pytest.MonkeyPatch.context() as patch:
        for name in files:
            patch.setitem(sys.modules, name, None)
        yield


def saved(model: nn.Module) -> bytes:
    file = io.BytesIO()
    torch.save(model, file)
    return file.getvalue()


def names_in(file: bytes) -> set[str]:
    """The globals of ours that a file of torch.save, or one of ours, names."""
    if not file.startswith(b"PK"):
        header = json.loads(file[8 : 8 + int.from_bytes(file[:8], "little")])
        nodes = json.loads(header["__metadata__"]["bayesify"])["nodes"]
        named = [".".join(node["name"]) for node in nodes if "name" in node]
        return {name for name in named if name.startswith("bayesify")}
    with zipfile.ZipFile(io.BytesIO(file)) as archive:
        data = archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))
    named = [str(argument).replace(" ", ".") for code, argument, _ in pickletools.genops(data) if code.name == "GLOBAL"]
    return {name for name in named if name.startswith("bayesify")}


@pytest.mark.parametrize("package", PINNED)
def test_each_is_in_its_package_under_its_own_name(package: str) -> None:
    for name in PINNED[package]:
        thing = getattr(import_module(package), name)
        assert (thing.__module__, thing.__qualname__) == (package, name)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", MODELS)
def test_a_file_opens_after_the_code_has_moved(name: str, method: Method) -> None:
    trusting = name == "graph"  # torch runs a graph's code, and so never opens one with weights_only
    for policy in POLICIES if name != "lazy" else [{}]:
        model: Any = bayesify.convert(MODELS[name](), {"method": method, **TARGETS.get(name, {}), **policy})
        file = saved(model)
        derived = {f"bayesify.nn.{kind.__qualname__}" for kind in map(type, model.modules()) if hasattr(kind, "_plain")}
        assert names_in(file) <= PINNED_NAMES | derived
        assert names_in(file) & {f"bayesify.nn.{kind.__name__}" for kind in map(type, model.modules())} or trusting
        unsafe = [] if trusting else get_unsafe_globals_in_checkpoint(io.BytesIO(file))
        assert not any(name.startswith("bayesify") for name in unsafe)
        with moved(), safe_globals([pkgutil.resolve_name(name) for name in unsafe]):
            loaded = torch.load(io.BytesIO(file), weights_only=not trusting)
        assert [type(module).__name__ for module in loaded.modules()] == [
            type(module).__name__ for module in model.modules()
        ]
        if name != "lazy":
            torch.manual_seed(0)
            expected = model.kl()
            torch.manual_seed(0)
            assert torch.equal(loaded.kl(), expected)


def test_without_its_pin_a_class_is_lost_by_the_move(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bayesify.nn.FlipoutLinear, "__module__", "bayesify.nn.linear")
    pickled = pickle.dumps(bayesify.convert(nn.Linear(2, 2), "flipout"))
    with moved(), pytest.raises(ModuleNotFoundError, match=r"bayesify\.nn\.linear"):
        pickle.loads(pickled)


def test_a_calibrated_model_opens_after_the_code_has_moved(tmp_path: Any) -> None:
    model: Any = bayesify.convert(nn.Sequential(nn.Linear(3, 4)), "flipout")
    bayesify.calibrate(model, [(torch.randn(8, 3), torch.randint(0, 4, (8,)))], task="classification", samples=2)
    file = saved(model)
    assert names_in(file) <= PINNED_NAMES
    with moved(), safe_globals([nn.Sequential]):
        loaded = torch.load(io.BytesIO(file), weights_only=True)
    assert loaded._calibration == model._calibration
    bayesify.save(model, tmp_path / "model.pt")
    assert vars(bayesify.load(tmp_path / "model.pt")).keys() == vars(model).keys()
