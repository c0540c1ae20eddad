"""Where the draws of one example part: what a network computes before its first noise is the same for all of them.

Two runs at the posterior mean tell. In one the rows part at the first layer with a posterior, and each has a row of
random numbers beside it. Where that fails, or an example's own row is not what it is alone, rows part nowhere: before
the noise there was an x that is added after it, say, or a batch size that rows are counted by.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ..nn.base import Variational
from ..nn.basis import has_basis
from ..nn.examples_alone import PartingSought
from ..nn.kl import variational_layers
from ..nn.rerouting import Rerouting
from ..nn.switches import way_of

_OFF = ("dropout_p", "dropout", "train", "training")  # an argument of random operators; nothing is drawn where it is 0


def layers_that_part(model: nn.Module) -> frozenset[Variational]:
    """The layers that can make several rows of one; none where a layer counts the examples that the model is given."""
    modules = list(model.modules())
    layers = [module for module in modules if isinstance(module, Variational)]
    if any(layer._settings.rows > 1 for layer in layers):
        return frozenset()
    counting = {module for parent in modules if isinstance(parent, Rerouting) for module in parent.modules()}
    return frozenset(layer for layer in layers if layer not in counting and _parts(layer))


def counts_at_mean(model: nn.Module) -> bool:
    """Whether a pass at the posterior mean tells, by `PartingSought.counts`, all noise that one beside it draws."""
    layers = [layer for _, layer in variational_layers(model)]
    plain = all(_is_plain(layer) and layer._settings.rows <= 1 and way_of(layer) is None for layer in layers)
    return plain and not any(isinstance(module, Rerouting) for module in model.modules())


def has_prefix(model: nn.Module) -> bool:
    """Whether most of the model's weights have no posterior, so that much may be computed before the first noise."""
    weights = sum(weight.numel() for weight in model.parameters())
    noisy = sum(layer.mean_of(name).numel() for _, layer in variational_layers(model) for name in layer.means())
    return 3 * noisy < weights  # a posterior counts twice in it: its mean and its scale


class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Watches a pass in which a parting is sought.

    Attributes:
        drawn: whether random numbers were drawn before it, which must be others for each draw.
        largest: the numbers of the largest tensor after it.
    """

    def __init__(self, parting: PartingSought) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.parting, self.drawn, self.largest = parting, False, 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else torch imports its compiler, for seconds, to keep it out of the method below

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if not self.parting.done:
            self.drawn = self.drawn or _draws(func, args, kwargs or {})
        elif not _is_of_weights(func, args):
            outputs = output if isinstance(output, tuple | list) else (output,)
            self.largest = max([self.largest, *(each.numel() for each in outputs if isinstance(each, Tensor))])
        return output


def _parts(layer: Variational) -> bool:
    known = _is_plain(layer) and not any(True for _ in layer.children())
    return known and way_of(layer) is None and layer._settings.batch_dim == 0 and not has_basis(layer, "weight")


def _is_plain(layer: Variational) -> bool:
    forward: Any = type(layer).forward  # one for each class, of the same code
    return getattr(forward, "__code__", None) is Variational.forward.__code__


def _is_of_weights(operator: Any, args: Sequence[Any]) -> bool:
    """Whether the result is a view, as of a weight, or is computed of weights alone, as by a cast."""
    if any(returned.alias_info for returned in operator._schema.returns):
        return True
    given = [part for each in args for part in (each if isinstance(each, tuple | list) else [each])]
    return all(isinstance(each, nn.Parameter) for each in given if isinstance(each, Tensor))


def _draws(operator: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    if torch.Tag.nondeterministic_seeded not in getattr(operator, "tags", ()):
        return False
    arguments = operator._schema.arguments
    values = {argument.name: argument.default_value for argument in arguments if argument.has_default_value()}
    values |= {argument.name: value for argument, value in zip(arguments, args, strict=False)} | dict(kwargs)
    return all(values.get(name) is None or values[name] for name in _OFF)
