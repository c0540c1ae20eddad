"""Networks that call their layers in ways of their own: in frequencies, in time, for some rows, at many scales."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SpectralConv(nn.Module):
    """The Fourier neural operator's: a product at each of the lowest frequencies (Li et al. 2021)."""

    def __init__(self, channels: int, modes: int) -> None:
        super().__init__()
        self.modes = modes
        self.weight = nn.Parameter(torch.randn(channels, channels, modes, 2) / channels)

    def forward(self, x: Tensor) -> Tensor:
        low = torch.fft.rfft(x)[:, :, : self.modes]
        mixed = torch.einsum("bix,iox->box", low, torch.view_as_complex(self.weight))
        return torch.fft.irfft(mixed, n=x.shape[-1])


class FourierOperator(nn.Module):
    """Lifts, two spectral layers beside pointwise ones, projects; x (batch, 1, points)."""

    def __init__(self) -> None:
        super().__init__()
        self.lift, self.project = nn.Conv1d(1, 8, 1), nn.Conv1d(8, 1, 1)
        self.spectral = nn.ModuleList(SpectralConv(8, 4) for _ in range(2))
        self.pointwise = nn.ModuleList(nn.Conv1d(8, 8, 1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.lift(x)
        for spectral, pointwise in zip(self.spectral, self.pointwise, strict=True):
            x = F.gelu(spectral(x) + pointwise(x))
        return self.project(x)  # type: ignore[no-any-return]


class ComplexSpectralConv(nn.Module):
    """The same over an image, its weights complex Parameters, as the authors' own code has it."""

    def __init__(self, channels: int, modes: int) -> None:
        super().__init__()
        self.modes = modes
        shape = channels, channels, modes, modes
        self.weights1 = nn.Parameter(torch.rand(shape, dtype=torch.cfloat) / channels**2)
        self.weights2 = nn.Parameter(torch.rand(shape, dtype=torch.cfloat) / channels**2)

    def multiplied(self, input: Tensor, weights: Tensor) -> Tensor:
        return torch.einsum("bixy,ioxy->boxy", input, weights)

    def forward(self, x: Tensor) -> Tensor:
        low, ft = self.modes, torch.fft.rfft2(x)
        out = torch.zeros(*ft.shape, dtype=torch.cfloat, device=x.device)
        out[:, :, :low, :low] = self.multiplied(ft[:, :, :low, :low], self.weights1)
        out[:, :, -low:, :low] = self.multiplied(ft[:, :, -low:, :low], self.weights2)
        return torch.fft.irfft2(out, s=(x.size(-2), x.size(-1)))


class ComplexFourierOperator(nn.Module):
    """Lifts, a complex spectral layer beside a pointwise one, projects; x (batch, 1, height, width)."""

    def __init__(self) -> None:
        super().__init__()
        self.lift, self.project = nn.Conv2d(1, 4, 1), nn.Conv2d(4, 1, 1)
        self.spectral, self.pointwise = ComplexSpectralConv(4, 3), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.lift(x)
        return self.project(F.gelu(self.spectral(x) + self.pointwise(x)))  # type: ignore[no-any-return]


class OdeNet(nn.Module):
    """A neural ordinary differential equation, by four steps of Runge and Kutta (Chen et al. 2018); x (batch, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.rate = nn.Sequential(nn.Linear(9, 16), nn.Tanh(), nn.Linear(16, 8))
        self.encode, self.decode = nn.Linear(3, 8), nn.Linear(8, 2)

    def _rate(self, time: float, x: Tensor) -> Tensor:
        return self.rate(torch.cat([x, torch.full_like(x[:, :1], time)], 1))  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        x, step = self.encode(x), 0.25
        for now in range(4):
            time = now * step
            one = self._rate(time, x)
            two = self._rate(time + step / 2, x + step / 2 * one)
            three = self._rate(time + step / 2, x + step / 2 * two)
            four = self._rate(time + step, x + step * three)
            x = x + step / 6 * (one + 2 * two + 2 * three + four)
        return self.decode(x)  # type: ignore[no-any-return]


class SparseExperts(nn.Module):
    """Each token goes to one expert, and an expert sees as many rows as the tokens say; x (batch, tokens, 6)."""

    def __init__(self) -> None:
        super().__init__()
        self.router, self.head = nn.Linear(6, 3), nn.Linear(6, 2)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 6)) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, 6)
        gates = self.router(rows).softmax(-1)
        chosen, mixed = gates.argmax(-1), torch.zeros_like(rows)
        for index, expert in enumerate(self.experts):
            own = (chosen == index).nonzero().squeeze(1)
            mixed = mixed.index_add(0, own, expert(rows[own]) * gates[own, index : index + 1])
        return self.head(mixed.view_as(x))  # type: ignore[no-any-return]


class Detector(nn.Module):
    """RetinaNet in small: images in a list, one head over two scales, the best regions of each (Lin et al. 2017)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down = nn.Conv2d(3, 8, 3, 2, padding=1), nn.Conv2d(8, 8, 3, 2, padding=1)
        self.scores, self.boxes = nn.Conv2d(8, 2, 3, padding=1), nn.Conv2d(8, 4, 3, padding=1)
        self.refine = nn.Linear(8, 4)

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        height, width = (max(image.shape[dim] for image in images) for dim in (1, 2))
        padded = [F.pad(image, (0, width - image.shape[2], 0, height - image.shape[1])) for image in images]
        fine = F.relu(self.stem(torch.stack(padded)))
        levels = [fine, F.relu(self.down(fine))]
        features, scores, boxes = (
            torch.cat([head(level).flatten(2).mT for level in levels], 1)
            for head in (nn.Identity(), self.scores, self.boxes)
        )
        outputs = []
        for image in range(len(images)):
            best = scores[image].amax(1).topk(5).indices
            refined = boxes[image, best] + self.refine(features[image, best])
            outputs.append({"boxes": refined, "scores": scores[image, best].sigmoid()})
        return outputs
