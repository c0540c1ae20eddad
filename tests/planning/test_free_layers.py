"""What nothing blocks: every plain layer of torch, subclasses that only multiply, children that are called."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bayesify.analysis.site import Site
from bayesify.nn.registry import plain_classes
from bayesify.planning.blockers import bears_weight, blocker, kept_because


class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(2))


class LazyScale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.UninitializedParameter()


class DoubledLinear(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


class InheritingLinear(nn.Linear):
    pass


@pytest.mark.parametrize("cls", [DoubledLinear, InheritingLinear])
def test_subclasses_that_only_multiply_are_free(cls: type[nn.Linear]) -> None:
    assert blocker(Site(cls(2, 2), "layer")) is None


def _plain(cls: type[nn.Module], **options: Any) -> nn.Module:
    sizes = {"Bilinear": (2, 2, 2), "LazyLinear": (2,)}
    lazy = (2, 1) if cls.__name__.startswith("Lazy") else (2, 2, 1)
    two = cls.__name__.endswith(("Linear", "Cell", "Bag"))
    return cls(*sizes.get(cls.__name__, (2, 2) if two else lazy), **options)


TORCH = [cls for cls in plain_classes() if cls.__module__.startswith("torch.nn.")]


@pytest.mark.parametrize("change", ["float", "half", "frozen", "no bias", "meta", "hooked"])
@pytest.mark.parametrize("cls", TORCH, ids=lambda cls: cls.__name__)
def test_every_plain_layer_is_free(cls: type[nn.Module], change: str) -> None:
    biased = change != "no bias" or issubclass(cls, nn.Embedding | nn.EmbeddingBag)
    module = _plain(cls) if biased else _plain(cls, bias=False)
    if change == "half":
        module.half()
    elif change == "frozen":
        for parameter in module.parameters():
            parameter.requires_grad = False
    elif change == "meta":
        module.to("meta")
    elif change == "hooked":
        module.register_forward_hook(lambda *_: None)
    assert blocker(Site(module, "")) is None
    assert bears_weight(module)


def test_a_weight_tied_to_an_embedding_s_is_free() -> None:
    layer, embedding = nn.Linear(2, 3, bias=False), nn.Embedding(3, 2)
    layer.weight = embedding.weight
    assert blocker(Site(layer, "head")) is None


@pytest.mark.parametrize(
    "module",
    [nn.BatchNorm2d(2), nn.LayerNorm((2, 2)), nn.LazyBatchNorm1d(), nn.PReLU(), Scale(), LazyScale()],
    ids=lambda module: type(module).__name__,
)
def test_what_has_no_matrix_is_kept_and_not_blocked(module: nn.Module) -> None:
    assert bears_weight(module)
    assert blocker(Site(module, "norm")) is None
    name = type(module).__name__
    assert kept_because(module) == f"{'' if 'Scale' in name else 'nn.'}{name} has no weight matrix"


def test_a_container_bears_no_weight() -> None:
    assert not bears_weight(nn.Sequential(nn.Linear(2, 2)))


class OtherAttention(nn.MultiheadAttention):
    """Its forward is nn.MultiheadAttention's, which reads `out_proj.weight` without calling `out_proj`."""


@pytest.mark.parametrize("cls", [nn.MultiheadAttention, OtherAttention])
def test_out_proj_is_free_in_every_attention(cls: type[nn.MultiheadAttention]) -> None:
    attention = cls(2, 1)
    for parents in ((("", attention),), (("", nn.Module()), ("attn", attention))):
        assert blocker(Site(attention, parents[-1][0], parents[:-1])) is None
        assert blocker(Site(attention.out_proj, "out_proj", parents)) is None


def test_the_feed_forward_of_an_encoder_layer_is_free() -> None:
    layer = nn.TransformerEncoderLayer(2, 1, 2)
    assert blocker(Site(layer.linear1, "linear1", (("", layer),))) is None
