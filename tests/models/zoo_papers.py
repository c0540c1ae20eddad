"""Networks of well-known papers, as their public code writes them, in small: what libraries do not hold."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class EqualLinear(nn.Module):
    """StyleGAN's: the learning rate is equalized by a factor at run time."""

    def __init__(self, n: int, m: int) -> None:
        super().__init__()
        self.weight, self.bias, self.scale = nn.Parameter(torch.randn(m, n)), nn.Parameter(torch.zeros(m)), n**-0.5

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(F.linear(x, self.weight * self.scale, self.bias), 0.2)


class ModulatedConv(nn.Module):
    """StyleGAN2's: each example scales the kernel by its style, and one grouped convolution serves all."""

    def __init__(self, n: int, m: int, style: int) -> None:
        super().__init__()
        self.weight, self.modulation = nn.Parameter(torch.randn(1, m, n, 3, 3)), EqualLinear(style, n)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        weight = self.weight * (1 + self.modulation(style).view(batch, 1, channels, 1, 1))
        weight = weight * torch.rsqrt(weight.pow(2).sum([2, 3, 4], keepdim=True) + 1e-8)
        weight = weight.view(-1, channels, 3, 3)
        y = F.conv2d(x.reshape(1, batch * channels, height, width), weight, padding=1, groups=batch)
        return y.view(batch, -1, height, width)


class StyleGenerator(nn.Module):
    """A mapping of noise to styles, and two modulated convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.mapping, self.start = nn.Sequential(EqualLinear(8, 8), EqualLinear(8, 8)), nn.Parameter(torch.randn(4, 4))
        self.first, self.last = ModulatedConv(1, 8, 8), ModulatedConv(8, 3, 8)

    def forward(self, z: Tensor) -> Tensor:
        style = self.mapping(z)
        x = self.first(self.start.expand(len(z), 1, 4, 4), style)
        return self.last(F.leaky_relu(F.interpolate(x, scale_factor=2), 0.2), style)  # type: ignore[no-any-return]


class StandardizedConv(nn.Conv2d):
    """Big Transfer's: the kernel's rows are standardized at every call."""

    def forward(self, x: Tensor) -> Tensor:
        mean = self.weight.mean(dim=(1, 2, 3), keepdim=True)
        std = (self.weight - mean).flatten(1).std(dim=1).view(-1, 1, 1, 1) + 1e-5
        weight = (self.weight - mean) / std.expand_as(self.weight)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class MaskedConv(nn.Conv2d):
    """PixelCNN's: it masks its kernel in place, and calls its base."""

    def __init__(self, n: int, m: int, size: int, later: bool) -> None:
        super().__init__(n, m, size, padding=size // 2)
        self.register_buffer("mask", torch.ones_like(self.weight))
        self.mask[:, :, size // 2, size // 2 + later :] = 0
        self.mask[:, :, size // 2 + 1 :] = 0

    def forward(self, x: Tensor) -> Tensor:
        self.weight.data *= self.mask
        return super().forward(x)


class MaskedLinear(nn.Linear):
    """MADE's."""

    def __init__(self, n: int, m: int) -> None:
        super().__init__(n, m)
        self.register_buffer("mask", (torch.arange(m)[:, None] % n >= torch.arange(n)).float())

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.mask * self.weight, self.bias)


class SplineLayer(nn.Module):
    """A layer of a Kolmogorov-Arnold network, of splines of order one with a scale for each."""

    def __init__(self, n: int, m: int, knots: int = 6) -> None:
        super().__init__()
        self.base_weight, self.spline_scaler = nn.Parameter(torch.randn(m, n)), nn.Parameter(torch.randn(m, n))
        self.spline_weight = nn.Parameter(torch.randn(m, n, knots))
        self.register_buffer("grid", torch.linspace(-2, 2, knots))

    @property
    def scaled_spline_weight(self) -> Tensor:
        return self.spline_weight * self.spline_scaler.unsqueeze(-1)

    def forward(self, x: Tensor) -> Tensor:
        bases = (1 - (x.unsqueeze(-1) - self.grid).abs() / 0.8).relu()
        splines = F.linear(bases.view(x.size(0), -1), self.scaled_spline_weight.view(len(self.base_weight), -1))
        return F.linear(F.silu(x), self.base_weight) + splines


class GraphAttention(nn.Module):
    """GAT's first public form: a matrix, and a vector for each side of an edge."""

    def __init__(self, n: int, m: int) -> None:
        super().__init__()
        self.W, self.a = nn.Parameter(torch.randn(n, m)), nn.Parameter(torch.randn(2 * m, 1))

    def forward(self, nodes: Tensor, edges: Tensor) -> Tensor:
        h = torch.mm(nodes, self.W)
        size = h.shape[1]
        scores = F.leaky_relu(h @ self.a[:size] + (h @ self.a[size:]).T)
        scores = torch.where(edges > 0, scores, -9e15 * torch.ones_like(scores))
        return F.elu(scores.softmax(1) @ h)


class Capsules(nn.Module):
    """Routing by agreement: each capsule predicts all of the next layer's."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.W = nn.Conv2d(1, 8, 5, 2), nn.Parameter(0.3 * torch.randn(1, 32, 4, 6, 4))

    def forward(self, x: Tensor) -> Tensor:
        u = self.conv(x).view(x.size(0), -1, 4)
        u = torch.matmul(self.W, u[:, :, None, :, None]).squeeze(-1)
        logits = torch.zeros(*u.shape[:3], 1, device=x.device)
        for _ in range(2):
            v = (logits.softmax(2) * u).sum(1, keepdim=True)
            v = v / (1 + v.norm(dim=-1, keepdim=True))
            logits = logits + (u * v).sum(-1, keepdim=True)
        return v.norm(dim=-1)


class AngularMargin(nn.Module):
    """ArcFace's head: cosines with normalized classes."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.weight = nn.Linear(6, 8), nn.Parameter(torch.randn(5, 8))

    def forward(self, x: Tensor) -> Tensor:
        return 30 * F.linear(F.normalize(self.body(x)), F.normalize(self.weight))


class LowRank(nn.Module):
    """A product of two factors is the weight."""

    def __init__(self) -> None:
        super().__init__()
        self.factors = nn.ParameterList([torch.randn(8, 2), torch.randn(2, 6)])

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.factors[0] @ self.factors[1])


def big_transfer() -> nn.Module:
    return nn.Sequential(StandardizedConv(3, 8, 3), nn.GroupNorm(2, 8), nn.ReLU(), nn.Conv2d(8, 4, 1))


def pixel_cnn() -> nn.Module:
    return nn.Sequential(MaskedConv(1, 8, 5, later=False), nn.ReLU(), MaskedConv(8, 4, 3, later=True))


def autoregressive() -> nn.Module:
    return nn.Sequential(MaskedLinear(6, 16), nn.ReLU(), MaskedLinear(16, 12))


def spline_network() -> nn.Module:
    return nn.Sequential(SplineLayer(4, 6), SplineLayer(6, 2))
