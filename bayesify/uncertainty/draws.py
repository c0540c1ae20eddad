"""One draw of the weights, held: the model as one function, for as long as a block lasts, or for good."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, fx, nn

from ..errors import UsageError
from ..estimators import noise
from ..nn.base import Variational
from ..nn.held_draws import HeldDraws
from ..nn.kl import layers_of
from ..nn.parametrized_weights import identity, sources
from ..nn.switches import switched
from ..surgery.reset import refuse_lazy
from ..surgery.revert import revert
from .seeds import seeded


@contextmanager
def draw(model: nn.Module, seed: int | None = None, draws: int = 1) -> Iterator[None]:
    """Hold one draw of all weights: inside, the model is one function, for every call, example and time step.

    Flipout and LRT alike. The draw is mean + std·ε with ε held: it follows the parameters, and gradients reach mean and
    scale (Kingma & Welling 2014, section 2.4). It holds for the thread or asyncio task that opened the block; where
    checkpointing computes parts again, call backward inside.

    Args:
        seed: the same seed is the same draw, and the global generators are left as they were.
        draws: hold so many, and give example i of each batch draw i (by turns, where conversion by `example_inputs`
            told where the examples are; otherwise a batch must have so many examples).

    Raises:
        NotVariationalError: the model has no variational layer.
        UninitializedLayerError: a lazy layer has not seen data.
        UsageError: draws is not a positive number; inside, several draws where it is not known which example is which.
    """
    if draws < 1:
        raise UsageError(f"draws={draws} is not a number of draws")
    refuse_lazy(model, "there is nothing to draw")
    with seeded(model, seed):
        held = drawn_numbers(model, draws)
    with switched(held):
        yield


def sample(model: nn.Module, seed: int | None = None) -> nn.Module:
    """The plain network of one draw, a copy with the original classes; the function that `draw(model, seed)` holds.

    A table that is tied to a decoder and only looked up in stays at its mean, as in the converted model: it is untied.

    Raises:
        NotVariationalError: the model has no variational layer.
        UninitializedLayerError: a lazy layer has not seen data.
        UsageError: a weight is computed by a parametrization, so that no draw of it can be written.
    """
    with seeded(model, seed):
        plain = revert(model, weights="sample")
    _put_back_means(model, plain)
    return plain


def _put_back_means(model: nn.Module, plain: nn.Module) -> None:
    """Give the modules that hold a posterior's mean without noise a Parameter of their own with it."""
    layers = layers_of(model)
    means = {id(own): own for layer in layers for name in layer.means() for own in sources(layer, name)}
    copies: dict[int, nn.Parameter] = {}
    plain_modules = dict(plain.named_modules())
    for path, module in model.named_modules():
        own = plain_modules.get(path)
        if own is None or isinstance(module, fx.GraphModule):  # parts that revert took out multiply by a graph's own
            continue
        noisy = module.means() if isinstance(module, Variational) else []
        for name, value in module._parameters.items():
            if id(value) in means and name not in noisy and name.removesuffix("_orig") not in noisy:
                mean = means[id(value)]
                fresh = copies.setdefault(id(value), nn.Parameter(mean.detach().clone(), mean.requires_grad))
                own._parameters[name] = fresh


@torch.no_grad()
def drawn_numbers(model: nn.Module, draws: int) -> dict[nn.Module, HeldDraws]:
    """The numbers of each layer, one set for each posterior, drawn in the order in which `revert` draws weights."""
    numbers: dict[tuple[int, ...], Tensor] = {}
    held: dict[nn.Module, dict[str, Tensor]] = {}
    for layer in layers_of(model):
        held[layer] = {}
        for name in layer.means():
            key = identity(layer, name)
            if key not in numbers:
                mean = layer.mean_of(name)
                numbers[key] = torch.stack([noise.normal_like(mean) for _ in range(draws)])
            held[layer][name] = numbers[key]
    return {layer: HeldDraws(own) for layer, own in held.items()}
