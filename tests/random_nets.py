"""Random networks out of every layer that converts and of all that stands around layers, and random policies."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

WIDTH = 6  # every block maps (N, 6) to (N, 6)
CONVS = ("Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d")


class Reshaped(nn.Module):
    """A convolution over the six numbers as two channels of three positions."""

    def __init__(self, conv: nn.Module, dims: int) -> None:
        super().__init__()
        self.conv, self.dims = conv, dims

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.reshape(len(x), 2, 3, *[1] * (self.dims - 1))).reshape(len(x), WIDTH)


class Squared(nn.Module):
    """A bilinear layer of x and x."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.pair = nn.Bilinear(WIDTH, WIDTH, WIDTH, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.pair(x, x))


class Attended(nn.Module):
    """Attention over the six numbers as three steps of two."""

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, x: Tensor) -> Tensor:
        steps = x.reshape(len(x), 3, 2)
        steps = steps if self.attention.batch_first else steps.transpose(0, 1)
        found = self.attention(steps, steps, steps, need_weights=False)[0]
        return (found if self.attention.batch_first else found.transpose(0, 1)).reshape(len(x), WIDTH)


class Stepped(nn.Module):
    """A recurrent net, or its cell, over the six numbers as three steps of two."""

    def __init__(self, recurrent: nn.RNNBase | nn.RNNCellBase) -> None:
        super().__init__()
        self.recurrent = recurrent

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.recurrent, nn.RNNBase):
            steps = x.reshape(len(x), 3, 2)
            found = self.recurrent(steps if self.recurrent.batch_first else steps.transpose(0, 1))[0]
            return (found if self.recurrent.batch_first else found.transpose(0, 1)).reshape(len(x), WIDTH)
        if isinstance(self.recurrent, nn.LSTMCell):
            return self.recurrent(x, (x, x))[0]
        return self.recurrent(x, x)


class LookedUp(nn.Module):
    """Rows of a table, by which of the six numbers are positive."""

    def __init__(self, table: nn.Embedding | nn.EmbeddingBag) -> None:
        super().__init__()
        self.table = table

    def forward(self, x: Tensor) -> Tensor:
        found = self.table((x > 0).long())
        return torch.tanh(x + (found.sum(1) if isinstance(self.table, nn.Embedding) else found))


class Residual(nn.Module):
    """x + f(x), with f in a dictionary of modules."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleDict({"main": inner})

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branches["main"](x)


class Listed(nn.Module):
    """Modules that are registered and that the forward finds in a plain list."""

    def __init__(self, blocks: list[nn.Module]) -> None:
        super().__init__()
        self.blocks, self.plain = nn.ModuleList(blocks), blocks

    def forward(self, x: Tensor) -> Tensor:
        for block in self.plain:
            x = block(x)
        return x


class Twins(nn.Module):
    """Two layers that share a weight, or a bias, or that are one layer."""

    def __init__(self, share: str) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        if share == "module":
            self.b = self.a
        elif share == "both":
            self.b.weight, self.b.bias = self.a.weight, self.a.bias
        else:
            setattr(self.b, share, getattr(self.a, share))

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.a(x)))


CLASSES = [Reshaped, Squared, Attended, Stepped, LookedUp, Residual, Listed, Twins]


@st.composite
def convolutions(draw: st.DrawFn) -> nn.Module:
    name = draw(st.sampled_from(CONVS))
    dims = int(name[-2])
    options: dict[str, Any] = {
        "kernel_size": (3, *[1] * (dims - 1)), "padding": (1, *[0] * (dims - 1)),
        "groups": draw(st.sampled_from([1, 2])), "bias": draw(st.booleans()),
    }  # fmt: skip
    if "Transpose" not in name:
        options["padding_mode"] = draw(st.sampled_from(["zeros", "circular", "replicate"]))
        options["padding"] = draw(st.sampled_from(["same", options["padding"]]))
    lazy = draw(st.booleans())
    conv = getattr(nn, f"Lazy{name}")(2, **options) if lazy else getattr(nn, name)(2, 2, **options)
    return Reshaped(conv, dims)


@st.composite
def attentions(draw: st.DrawFn) -> nn.Module:
    options = {name: draw(st.booleans()) for name in ("bias", "add_bias_kv", "add_zero_attn", "batch_first")}
    sizes: dict[str, int] = {"kdim": 2, "vdim": 2} if draw(st.booleans()) else {}
    return Attended(nn.MultiheadAttention(2, draw(st.sampled_from([1, 2])), **options, **sizes))


@st.composite
def recurrents(draw: st.DrawFn) -> nn.Module:
    kind, bias = draw(st.sampled_from(["RNN", "LSTM", "GRU"])), draw(st.booleans())
    if draw(st.booleans()):
        return Stepped(getattr(nn, f"{kind}Cell")(WIDTH, WIDTH, bias=bias))
    options: dict[str, Any] = {"bidirectional": draw(st.booleans()), "batch_first": draw(st.booleans())}
    width = 1 if options["bidirectional"] else 2
    if kind == "LSTM" and width < 2 and draw(st.booleans()):
        options["proj_size"], width = width, 3
    return Stepped(getattr(nn, kind)(2, width, draw(st.sampled_from([1, 2])), bias=bias, **options))


@st.composite
def layers(draw: st.DrawFn) -> nn.Module:
    kinds = ["linear", "lazy", "bilinear", "twins", "frozen", "other", "attention", "recurrent", "table"]
    kind = draw(st.sampled_from([*kinds, *["conv"] * 4]))
    bias = draw(st.booleans())
    if kind == "conv":
        return draw(convolutions())
    if kind == "attention":
        return draw(attentions())
    if kind == "recurrent":
        return draw(recurrents())
    if kind == "table":
        return LookedUp(draw(st.sampled_from([nn.Embedding, nn.EmbeddingBag]))(2, WIDTH))
    if kind == "twins":
        return Twins(draw(st.sampled_from(["module", "weight", "bias", "both"])))
    if kind == "frozen":
        return nn.Linear(WIDTH, WIDTH, bias).requires_grad_(False)
    if kind == "other":
        others = [nn.LayerNorm(WIDTH), nn.BatchNorm1d(WIDTH), nn.Tanh(), nn.Dropout(0.2), nn.LazyBatchNorm1d()]
        return draw(st.sampled_from(range(len(others))).map(others.__getitem__))
    if kind == "lazy":
        return nn.LazyLinear(WIDTH, bias)
    return Squared(bias) if kind == "bilinear" else nn.Linear(WIDTH, WIDTH, bias)


@st.composite
def blocks(draw: st.DrawFn, depth: int = 2) -> nn.Module:
    kind = draw(st.sampled_from(["layer", "layer", "sequence", "residual", "list", "again"])) if depth else "layer"
    if kind == "layer":
        return draw(layers())
    inner = [draw(blocks(depth - 1)) for _ in range(draw(st.integers(1, 2)))]
    if kind == "again":
        return nn.Sequential(inner[0], nn.Tanh(), inner[0])
    if kind == "list":
        return Listed(inner)
    sequence = nn.Sequential(*inner)
    return Residual(sequence) if kind == "residual" else sequence


@st.composite
def nets(draw: st.DrawFn) -> nn.Module:
    """A network with at least one layer that is trained."""
    torch.manual_seed(draw(st.integers(0, 99)))
    inner = [draw(blocks()) for _ in range(draw(st.integers(1, 3)))]
    return nn.Sequential(*inner, nn.Tanh(), nn.Linear(WIDTH, 3))


@st.composite
def policies(draw: st.DrawFn) -> dict[str, Any]:
    parameterization = draw(st.sampled_from(["additive", "multiplicative"]))
    std = draw(st.sampled_from([0.7, {"init_std": 2.0}, {"fan_in": 0.5}, {"relative": 0.5}]))
    priors: list[dict[str, Any]] = [{"mean": mean, "std": std} for mean in ("pretrained", "zero", 0.3)]
    priors.append({"family": "scale_mixture"})
    if parameterization == "multiplicative":
        priors.append({"family": "log_uniform"})
    method, other = draw(st.permutations(["flipout", "lrt"]))
    policy: dict[str, Any] = {
        "method": method,
        "posterior": {
            "parameterization": parameterization,
            "init_std": draw(st.sampled_from(["auto", 0.1, {"relative": 0.2}, {"fan_in": 0.3}])),
        },
        "prior": draw(st.sampled_from(priors)),
        "bias": draw(st.sampled_from(["deterministic", "variational"])),
        "signs": draw(st.sampled_from(["example", "position"])),
        "frozen": draw(st.sampled_from(["keep", "convert"])),
    }  # fmt: skip
    tables = [{"targets": ["type:Embedding", "type:EmbeddingBag"]}, {"targets": ["**"]}]
    lasts: list[Any] = [[{"targets": ["last"], "method": other}, {"targets": ["**"]}], [{"targets": ["last"]}]]
    rules = draw(st.sampled_from([None, tables, *lasts]))
    return policy if rules is None else {**policy, "rules": rules, "unmatched": "allow"}
