"""Small models of five kinds, exported by torch.export with a dynamic batch: what tests of programs open."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim, export


class ConvNet(nn.Module):
    """Strided, grouped, dilated and 'same' convolutions under batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.layer1 = nn.ModuleList(
            [nn.Conv2d(8, 8, 3, padding="same", groups=2), nn.Conv2d(8, 8, 3, padding=2, dilation=2)]
        )
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for conv in self.layer1:
            x = x + F.relu(conv(x))
        return self.fc(x.mean((2, 3)))


class GPT(nn.Module):
    """A decoder whose projections are bare Parameters (in, out), as GPT-2's are, and whose head is the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(17, 12), nn.Embedding(32, 12)
        self.attn = Projection(12, 36)
        self.mlp = nn.ModuleDict({"up": Projection(12, 24), "down": Projection(24, 12)})
        self.head = nn.Linear(12, 17, bias=False)
        self.head.weight = self.wte.weight

    def forward(self, ids: Tensor) -> dict[str, Tensor]:
        x = self.wte(ids) + self.wpe(torch.arange(ids.shape[1], device=ids.device))
        q, k, v = (part.unflatten(-1, (2, 6)).transpose(1, 2) for part in self.attn(x).chunk(3, dim=-1))
        x = x + F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(-2)
        x = x + self.mlp["down"](F.gelu(self.mlp["up"](x)))
        return {"logits": self.head(x), "hidden": x}


class Projection(nn.Module):
    """transformers' Conv1D: y = x W + b, over rows."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs) * 0.3)
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x.view(-1, x.shape[-1]), self.weight).view(*x.shape[:-1], -1)


class UNet(nn.Module):
    """Down by a strided convolution, up by a transposed one with output padding, and a skip."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.down = (
            nn.Conv2d(1, 4, 3, padding=1, padding_mode="reflect"),
            nn.Conv2d(4, 6, 3, stride=2, padding=1),
        )
        self.up = nn.ConvTranspose2d(6, 4, 3, stride=2, padding=1, output_padding=1)
        self.leave = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first = F.silu(self.enter(x))
        low = F.silu(self.down(first))
        return self.leave(torch.cat([first, self.up(low)], 1)), low


class TiedMLP(nn.Module):
    """An autoencoder that decodes by its encoder's weight, with a bare matrix, and matrices that must stay."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.unused = nn.Linear(6, 4), nn.Linear(2, 2)
        self.mix = nn.Parameter(torch.randn(4, 4) * 0.5)
        self.gate = nn.Parameter(torch.randn(4, 4))
        self.bias = nn.Parameter(torch.zeros(6))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.encode(x)) @ self.mix
        h = h + torch.einsum("bi,oi->bo", h, self.mix) + (self.gate * h.unsqueeze(1)).sum(1)
        return F.linear(h, self.encode.weight.t(), self.bias)


class Encoder(nn.Module):
    """torch's own encoder layers, batch-first or sequence-first."""

    def __init__(self, sequence_first: bool = False) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=not sequence_first)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x))


class Windows(nn.Module):
    """A layer that sees windows of the image as rows of a batch, as Swin's do."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.head = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        windows = x.unflatten(1, (2, -1)).unflatten(3, (2, -1)).transpose(2, 3).reshape(-1, 4, 4)
        return self.head(torch.tanh(self.qkv(windows)).reshape(x.shape[0], -1, 6).mean(1))


@dataclass(frozen=True)
class Case:
    """A model, its inputs for a batch of any size, what is dynamic, and the weights that must get a posterior."""

    model: nn.Module
    inputs: Any
    dynamic: Any
    sites: tuple[str, ...]
    train: bool = False

    def exported(self) -> Any:
        return export(self.model.train(self.train), self.inputs(3), dynamic_shapes=self.dynamic)


def images(channels: int) -> Any:
    return lambda size: (torch.randn(size, channels, 8, 8),)


def cases() -> dict[str, Case]:
    """The cases by name, with the same weights each time."""
    torch.manual_seed(0)
    batch, length = Dim("batch", min=1, max=64), Dim("length", min=2, max=32)
    convs = ("stem.0.weight", "layer1.0.weight", "layer1.1.weight", "fc.weight")
    attention = [f"encoder.layers.{at}.{name}" for at in (0, 1) for name in _ENCODER]
    return {
        "cnn": Case(ConvNet(), images(3), ({0: batch},), convs),
        "cnn in train mode": Case(ConvNet(), images(3), ({0: batch},), convs, train=True),
        "sequence-first encoder": Case(
            Encoder(sequence_first=True), lambda n: (torch.randn(5, n, 8),), ({1: batch},), (*attention, "head.weight")
        ),
        "encoder": Case(Encoder(), lambda n: (torch.randn(n, 5, 8),), ({0: batch},), (*attention, "head.weight")),
        "gpt": Case(
            GPT(), lambda n: (torch.randint(0, 17, (n, 4 + n)),), ({0: batch, 1: length},),
            ("attn.weight", "mlp.up.weight", "mlp.down.weight", "head.weight"),
        ),
        "unet": Case(UNet(), images(1), ({0: batch},), ("enter.weight", "down.weight", "up.weight", "leave.weight")),
        "tied mlp": Case(TiedMLP(), lambda n: (torch.randn(n, 6),), ({0: batch},), ("encode.weight", "mix")),
        "windows": Case(Windows(), lambda n: (torch.randn(n, 4, 4, 4),), ({0: batch},), ("qkv.weight", "head.weight")),
    }  # fmt: skip


_ENCODER = ("self_attn.in_proj_weight", "self_attn.out_proj.weight", "linear1.weight", "linear2.weight")


def flat(output):
    """A program's output as a list."""
    return (
        list(output.values()) if isinstance(output, dict) else list(output) if isinstance(output, tuple) else [output]
    )
