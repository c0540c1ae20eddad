"""Every reason why a layer stays is found, said in words, and found for nothing else."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from bayesify.analysis.census import Census, census
from bayesify.analysis.site import Site
from bayesify.nn.registry import plain_classes
from bayesify.planning.blockers import bears_weight, blocker


class OwnForward(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight + input.mean())


class Doubled(nn.Embedding):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


class Inherits(nn.Embedding):
    def __init__(self, n: int) -> None:
        super().__init__(n, n)

    def extra_repr(self) -> str:
        return "mine"


class OtherConv(nn.Conv2d):
    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(input, weight + input.mean(), bias)


class Computes(nn.Linear):
    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.raw, self.bias = nn.Parameter(torch.zeros(2, 2)), None

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        return self.raw.detach()


class Adds(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.matrix, self.other = nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(2, 2))
        self.scale = nn.Parameter(torch.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * (x + self.other)


class OwnsTheName(nn.Linear):
    weight_std = 1.0


class OwnLSTM(nn.LSTM):
    pass


class Adapter(nn.Module):
    adapter_layer_names = ("lora_A",)

    def __init__(self) -> None:
        super().__init__()
        self.base_layer, self.lora_A, self.lora_B = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, x: Tensor, **options: Any) -> Tensor:
        if options.pop("mixed", None) is not None:
            raise ValueError
        return self.base_layer(x) + self.lora_A(x) + self.lora_B.weight.exp()  # type: ignore[no-any-return]


class Tied(nn.Module):
    """Reads a layer's weight where its decoder should be called."""

    def __init__(self) -> None:
        super().__init__()
        self.read, self.called = nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.called(x) + self.read.weight.exp() + self.called.weight.sum()


class Packed(torch.Tensor):
    pass


def _with(layer: nn.Module, change: Callable[[nn.Module], object]) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        change(layer)
    return layer


def _as(layer: nn.Module, name: str, value: Tensor) -> nn.Module:
    layer._parameters[name] = value  # type: ignore[assignment]
    return layer


def _of(base: nn.Module, dtype: torch.dtype) -> nn.Module:
    return _as(base, "weight", nn.Parameter(torch.zeros(2, 2).to(dtype), requires_grad=False))


def _quantized() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.nn.quantized.dynamic.Linear(2, 2)


def _scripted() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(nn.Linear(2, 2))  # type: ignore[no-any-return]


def _linear() -> nn.Linear:
    return nn.Linear(2, 2)


BLOCKED = {
    "scripted": (_scripted, "TorchScript"),
    "quantized": (_quantized, "a quantized layer: convert the float model"),
    "adapter itself": (Adapter, "merge_and_unload"),
    "own forward": (lambda: OwnForward(2, 2), f"weight: it is used in `add` at {Path(__file__).name}:"),
    "super's forward": (lambda: Doubled(2, 2), "bayesify.register(Doubled, like=nn.Embedding)"),
    "inherits": (lambda: Inherits(2), "unchanged: bayesify.register(Inherits, like=nn.Embedding) converts it"),
    "helper": (lambda: OtherConv(2, 2, 1), f"weight: it is used in `add` at {Path(__file__).name}:"),
    "weight property": (Computes, f"raw: it is used in `detach` at {Path(__file__).name}:"),
    "lstm of one's own": (lambda: OwnLSTM(2, 2), "bayesify.register(OwnLSTM, like=nn.LSTM) converts it"),
    "recurrent base": (lambda: nn.RNNBase("GRU", 2, 2), "weight_ih_l0: nothing is known to multiply by it"),
    "weight_norm of an lstm": (
        lambda: _with(nn.LSTM(2, 2), lambda layer: nn.utils.weight_norm(layer, "weight_hh_l0")),
        "its weight_hh_l0 is computed from other Parameters, which a nn.LSTM here cannot do",
    ),
    "pruned gru cell": (
        lambda: _with(nn.GRUCell(2, 2), lambda layer: prune.l1_unstructured(layer, "bias_ih", 0.5)),
        "its bias_ih is computed from other Parameters, which a nn.GRUCell here cannot do",
    ),
    "clipped table": (lambda: nn.Embedding(2, 2, max_norm=1.0), "max_norm rewrites the rows"),
    "clipped bags": (lambda: nn.EmbeddingBag(2, 2, max_norm=1.0), "max_norm rewrites the rows"),
    "generic": (Adds, "matrix: its forward never uses it; other: it is used in `add`"),
    "parameter list": (lambda: nn.ParameterList([torch.zeros(2, 2)]), "0: nothing is known to multiply by it"),
    "parametrized layer of one's own": (
        lambda: parametrizations.weight_norm(Adds(), "matrix"),
        "its 'matrix' is computed by a parametrization: torch.nn",
    ),
    "weight is a buffer": (
        lambda: _with(_linear(), lambda layer: (delattr(layer, "weight"), layer.register_buffer("weight", None))),
        "its weight is not a Parameter of the layer",
    ),
    "packed weight": (
        lambda: _as(_linear(), "weight", torch.zeros(2, 2).as_subclass(Packed)),
        "its weight is a Packed, a Parameter of a kind of its own",
    ),
    "packed bias": (lambda: _as(_linear(), "bias", torch.zeros(2).as_subclass(Packed)), "its bias is a Packed"),
    "int8": (lambda: _of(_linear(), torch.int8), "its weight is torch.int8"),
    "float8": (lambda: _of(_linear(), torch.float8_e4m3fn), "its weight is torch.float8_e4m3fn"),
    "complex": (lambda: nn.Linear(2, 2, dtype=torch.complex64), "its weight is torch.complex64"),
    "clash: buffer": (
        lambda: _with(_linear(), lambda layer: layer.register_buffer("weight_rho", torch.zeros(1))),
        "it has 'weight_rho' already",
    ),
    "clash: parameter": (
        lambda: _with(_linear(), lambda layer: layer.register_parameter("bias_prior_mean", None)),
        "it has 'bias_prior_mean' already",
    ),
    "clash: module": (
        lambda: _with(_linear(), lambda layer: layer.add_module("weight_log_alpha", nn.Identity())),
        "it has 'weight_log_alpha' already",
    ),
    "clash: attribute": (
        lambda: _with(_linear(), lambda layer: setattr(layer, "weight_std", 1.0)),
        "it has 'weight_std' already",
    ),
    "clash: settings": (
        lambda: _with(_linear(), lambda layer: setattr(layer, "_settings", {"width": 2})),
        "it has '_settings' already",
    ),
    "forward on the instance": (
        lambda: _with(_linear(), lambda layer: setattr(layer, "forward", layer.forward)),
        "its 'forward' was replaced on the instance",
    ),
    "_conv_forward on the instance": (
        lambda: _with(nn.Conv2d(2, 2, 1), lambda layer: setattr(layer, "_conv_forward", layer._conv_forward)),
        "its '_conv_forward' was replaced on the instance",
    ),
}


@pytest.mark.parametrize(("make", "words"), BLOCKED.values(), ids=BLOCKED)
def test_blocked(make: Callable[[], nn.Module], words: str) -> None:
    module = make()
    reason = blocker(Site(module, "layer"))
    assert reason is not None
    assert words in reason
    assert "\n" not in reason
    assert isinstance(module, Adapter) or bears_weight(module)


def test_a_registered_class_that_took_the_name_is_blocked(monkeypatch: pytest.MonkeyPatch) -> None:
    for room in ("planning.blockers", "analysis.site"):
        monkeypatch.setattr(f"bayesify.{room}.plain_classes", lambda: (*plain_classes(), OwnsTheName, Inherits))
    assert "it has 'weight_std' already" in str(blocker(Site(OwnsTheName(2, 2), "layer")))
    assert blocker(Site(Inherits(2), "layer")) is None


def test_inside_an_adapter() -> None:
    model = nn.Sequential(Adapter())
    parents = (("", model), ("0", model[0]))
    assert blocker(Site(model[0].lora_A, "0.lora_A", parents)) is None
    reason = blocker(Site(model[0].lora_B, "0.lora_B", parents))
    assert reason == "Adapter does not call it, but may read its weight"
    reason = blocker(Site(model[0].base_layer, "0.base_layer", parents))
    start = "it is inside the peft adapter 0 (Adapter): the policy `lora` converts its adapters instead, "
    assert reason == start + "model.merge_and_unload() makes it plain"


@pytest.mark.parametrize("traced", [True, False])
def test_a_weight_that_is_read_and_never_called(traced: bool) -> None:
    model = Tied()
    found = census(model) if traced else None
    reason = blocker(Site(model.read, "read", (("", model),), found))
    assert reason is not None
    start = f"Tied reads its weight without calling it: it is used in `exp` at {Path(__file__).name}:"
    assert reason.startswith(start)
    assert blocker(Site(model.called, "called", (("", model),), found)) is None


def test_what_the_census_saw_called_outweighs_the_code() -> None:
    model = Tied()
    seen = Census(calls={"read": 1}, order=("read",), reads={"read": "here:1"}, unseen=frozenset())
    assert blocker(Site(model.read, "read", (("", model),), seen)) is None


def test_accelerate_s_hook_is_named() -> None:
    layer = _with(_linear(), lambda layer: setattr(layer, "forward", layer.forward))
    layer._hf_hook = object()  # type: ignore[assignment]
    assert "accelerate.hooks.remove_hook_from_module" in str(blocker(Site(layer, "layer")))
