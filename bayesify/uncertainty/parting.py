"""Where the draws of one example part: what a network computes before its first noise is the same for all of them.

Two runs at the posterior mean tell. In one the rows part at the first layer with a posterior, and each has a row of
random numbers beside it. Where that fails, or an example's own row is not what it is alone, rows part nowhere: before
the noise there was an x that is added after it, say, or a batch size that rows are counted by. Nor do they where the
forward draws random numbers of its own, or goes on by a number that noise would move (`if y.mean() > 0`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
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


class Reads(TorchFunctionMode):
    """Notes what `Watch` cannot see: numbers of a tensor that Python is told as a list, or in memory that it shares."""

    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self.watch = watch

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _READING and self.watch.is_noisy(args[0]):
            self.watch.read = True
        return func(*args, **(kwargs or {}))


_READING = frozenset((Tensor.tolist, Tensor.numpy, Tensor.__array__))


class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Watches a pass in which a parting is sought.

    Attributes:
        drawn: whether the model drew random numbers of its own, which must be others for each draw.
        read: whether Python was told a number that noise would move, to go on by it: for all rows, and so for all draws
            that are among them.
        largest: the numbers of the largest tensor after the parting.
    """

    def __init__(self, parting: PartingSought) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.parting, self.drawn, self.read, self.largest = parting, False, False, 0
        self._noisy: dict[int, StorageWeakRef] = {}  # memory that noise would move, by an address that it keeps
        parting.noted = lambda output: self._mark(pytree.tree_leaves(output))

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else torch imports its compiler, for seconds, to keep it out of the method below

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        given = [part for each in (*args, *(kwargs or {}).values()) for part in _parts_of(each)]
        if not self.parting.drawing:
            self.drawn = self.drawn or _draws(func, args, kwargs or {})
        if self._noisy and any(self.is_noisy(each) for each in given):
            self.read = self.read or isinstance(output, bool | int | float | complex)
            self._mark(given if func._schema.is_mutable else _parts_of(output))
        if self.parting.done and not _is_of_weights(func, given):
            sizes = (each.numel() for each in _parts_of(output) if isinstance(each, Tensor))
            self.largest = max(self.largest, *sizes, 0)
        return output

    def _mark(self, tensors: Iterable[Any]) -> None:
        for storage in filter(None, map(_storage_of, tensors)):
            self._noisy[storage._cdata] = StorageWeakRef(storage)  # type: ignore[no-untyped-call]

    def is_noisy(self, given: Any) -> bool:
        """Whether noise would move these numbers."""
        storage = _storage_of(given)
        return storage is not None and storage._cdata in self._noisy


def _parts(layer: Variational) -> bool:
    known = _is_plain(layer) and not any(True for _ in layer.children())
    return known and way_of(layer) is None and layer._settings.batch_dim == 0 and not has_basis(layer, "weight")


def _is_plain(layer: Variational) -> bool:
    forward: Any = type(layer).forward  # one for each class, of the same code
    return getattr(forward, "__code__", None) is Variational.forward.__code__


def _parts_of(given: Any) -> Sequence[Any]:
    return given if isinstance(given, tuple | list) else (given,)


def _storage_of(given: Any) -> Any:
    """What holds the tensor's numbers; None where it is no plain tensor, or a weight."""
    return given.untyped_storage() if type(given) is Tensor and given.layout is torch.strided else None


def _is_of_weights(operator: Any, given: Sequence[Any]) -> bool:
    """Whether the result is a view, as of a weight, or is computed of weights alone, as by a cast."""
    if any(returned.alias_info for returned in operator._schema.returns):
        return True
    return all(isinstance(each, nn.Parameter) for each in given if isinstance(each, Tensor))


def _draws(operator: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    if torch.Tag.nondeterministic_seeded not in getattr(operator, "tags", ()):
        return False
    arguments = operator._schema.arguments
    values = {argument.name: argument.default_value for argument in arguments if argument.has_default_value()}
    values |= {argument.name: value for argument, value in zip(arguments, args, strict=False)} | dict(kwargs)
    return all(values.get(name) is None or values[name] for name in _OFF)
