"""One architecture of the zoo: building it, running it, and how much of it is under a posterior."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

import bayesify

Inputs = dict[str, Any] | tuple[Any, ...]


@dataclass(frozen=True)
class Architecture:
    """A model and what it takes.

    Attributes:
        library: the package that it comes from.
        make: builds it, in train or eval mode.
        inputs: what to call it with, by name or by place.
    """

    library: str
    make: Callable[[], nn.Module]
    inputs: Callable[[], Inputs]

    def built(self) -> nn.Module:
        """The model in eval mode, the same at every call, as if it were trained."""
        torch.manual_seed(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = self.make().eval()
        _wake(model)
        return model

    def given(self) -> Inputs:
        """Its inputs, the same at every call."""
        torch.manual_seed(1)
        return self.inputs()


@torch.no_grad()
def _wake(model: nn.Module) -> None:
    """Some start with branches that a zero switches off, as no trained model has them."""
    for value in model.parameters():
        if value.numel() > 1 and (value == value.flatten()[0]).all():
            value += 0.1 * torch.randn_like(value)


def run(model: nn.Module, inputs: Inputs, seed: int = 2) -> list[Tensor]:
    """All floating point Tensors of the model's output; the seed is for what the model draws itself, and for noise."""
    torch.manual_seed(seed)
    output = model(**inputs) if isinstance(inputs, dict) else model(*inputs)
    return [each for each in _leaves(output) if each.is_floating_point()]


def _leaves(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        yield from _leaves(list(output.values()))
    elif isinstance(output, list | tuple):
        for each in output:
            yield from _leaves(each)
    elif is_dataclass(output):
        yield from _leaves(list(vars(output).values()))
    elif hasattr(output, "parameters") and isinstance(output.parameters, Tensor):
        yield output.parameters  # the distribution that diffusers' autoencoders return


@dataclass(frozen=True)
class Coverage:
    """How much of a model is under a posterior, of its Parameters of two or more dimensions.

    Attributes:
        layers: how many layers are variational.
        covered, total: numbers of elements.
        left: each Parameter without a posterior, its size, and why by the plan: empty where the plan does not say.
    """

    layers: int
    covered: int
    total: int
    left: dict[str, tuple[int, str]]

    @property
    def share(self) -> float:
        """Between 0 and 1."""
        return self.covered / self.total


def coverage(model: nn.Module, made: bayesify.Plan) -> Coverage:
    """What of a converted model is under a posterior, and what its plan says of the rest."""
    layers = list(bayesify.variational_layers(model))
    scales = {id(layer.scale_of(name)) for _, layer in layers for name in layer.means()}
    matrices = {
        name: parameter
        for name, parameter in model.named_parameters()
        if parameter.dim() > 1 and id(parameter) not in scales
    }
    means = {id(source) for _, layer in layers for name in layer.means() for source in _sources(layer, name)}
    left = {name: (weight.numel(), _why(made, name)) for name, weight in matrices.items() if id(weight) not in means}
    total = sum(value.numel() for value in matrices.values())
    return Coverage(len(layers), total - sum(size for size, _ in left.values()), total, left)


def _sources(layer: nn.Module, name: str) -> list[Tensor]:
    """The Parameter that is the mean, or those that it is computed from, by torch's names for them."""
    beside = dict(layer.named_parameters())
    names = [name, f"{name}_g", f"{name}_v", f"{name}_orig"]
    found = [beside[name] for name in names if name in beside]
    return found + [sizes for key, sizes in beside.items() if key.startswith(f"parametrizations.{name}.")]


def _why(made: bayesify.Plan, parameter: str) -> str:
    """What the plan says of a Parameter that keeps no posterior."""
    owner, _, name = parameter.rpartition(".")
    row = next((row for row in made.rows if owner in (row.name, *row.aliases)), None)
    if row is None:
        return ""
    if row.verb in ("keeps", "blocked"):
        return row.reason or ""
    return next((note for note in row.notes if name in note), "")
