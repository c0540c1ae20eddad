"""What a model is called with: given once, or by a loader in batches with labels that it does not take."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..errors import UsageError
from ..nn.base import Variational
from ..nn.posterior_tensors import SUFFIXES
from ..nn.registry import plain_class
from ..nn.rerouting import Rerouting

LABELS = frozenset(("label", "labels", "label_ids", "target", "targets"))  # keys of a batch that are not for the model


@dataclass(frozen=True)
class Call:
    """The arguments of one forward pass."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @cached_property
    def tensors(self) -> list[Tensor]:
        """All tensors in the arguments."""
        if self._is_plain:
            return list(self.args)
        return [leaf for leaf in pytree.tree_leaves((self.args, self.kwargs)) if isinstance(leaf, Tensor)]

    @cached_property
    def kind(self) -> Any:
        """What calls that differ in their number of examples alone have in common."""
        return tuple((tensor.shape[1:], tensor.dtype) for tensor in self.tensors)

    @cached_property
    def _is_plain(self) -> bool:
        """Whether tensors are all that is given, so that there is no tree to go through."""
        return not self.kwargs and all(type(arg) is Tensor for arg in self.args)

    @cached_property
    def examples(self) -> int:
        """The size of dimension 0 of the first tensor that has one; 0 where no tensor does."""
        return next((tensor.shape[0] for tensor in self.tensors if tensor.dim()), 0)

    def mapped(self, function: Callable[[Tensor], Tensor]) -> Call:
        """The same call, the function done to each of its tensors."""
        if self._is_plain:
            return Call(tuple(function(tensor) for tensor in self.args), {})
        args, kwargs = pytree.tree_map_only(Tensor, function, (self.args, self.kwargs))
        return Call(args, kwargs)

    def batched(self, function: Callable[[Tensor], Tensor]) -> Call:
        """The same call, the function done to each tensor whose dimension 0 is as long as the first one's."""
        examples = self.examples
        return self.mapped(lambda tensor: function(tensor) if tensor.dim() and len(tensor) == examples else tensor)


def given_call(model: nn.Module, inputs: tuple[Any, ...]) -> Call:
    """The call for inputs that `predict` was given: by place, or by keyword where one mapping names parameters."""
    if len(inputs) == 1 and isinstance(inputs[0], Mapping) and _takes(model, inputs[0]):
        return Call((), dict(inputs[0]))
    return Call(inputs, {})


def called(model: nn.Module, call: Call) -> Any:
    """The model's output for a call.

    Raises:
        UsageError: the model fails, and its inputs lie on another device or are floats of another dtype.
    """
    try:
        return model(*call.args, **call.kwargs)
    except RuntimeError as error:
        for what, advice in (("device", "move one"), ("dtype", "cast one, or call under autocast")):
            ours, given = _each(what, _weights(model)), _each(what, call.tensors)
            if ours and not set(given) <= set(ours):
                both = f"the inputs' {what} is {', '.join(given)}, that of the weights {', '.join(ours)}"
                raise UsageError(f"{both}: {advice}") from error
        raise


def _weights(model: nn.Module) -> list[Tensor]:
    """What the inputs must fit: scales are float32 whatever the weights are."""
    added = tuple(f"_{suffix}" for suffix in SUFFIXES)
    return [weight for name, weight in model.named_parameters() if not name.endswith(added)]


def _each(what: str, tensors: Iterable[Tensor]) -> list[str]:
    """The devices, or floating point dtypes, of these tensors."""
    return sorted({str(getattr(tensor, what)) for tensor in tensors if what == "device" or tensor.is_floating_point()})


def is_loader(model: nn.Module, value: Any) -> bool:
    """Whether this gives batches one after the other: a DataLoader, or any iterable that is not a container of tensors.

    A list is what a model takes (images, say), but for one of tuples, or of mappings that name the forward's arguments.

    Raises:
        UsageError: it is a data set, or of numpy: neither batches nor what a model takes.
    """
    if isinstance(value, list) and value:
        return all(_is_batch(model, batch) for batch in value)
    if isinstance(value, Tensor | Mapping | tuple | list | str) or value is None or is_own_batch(value):
        return False
    if type(value).__module__.partition(".")[0] in ("numpy", "pandas") or isinstance(value, torch.utils.data.Dataset):
        raise UsageError(f"predict takes tensors or a loader of batches, not a {type(value).__name__}: put it in one")
    return isinstance(value, Iterable)


def _is_batch(model: nn.Module, value: Any) -> bool:
    if isinstance(value, Mapping):
        keywords = _keywords(model, value)
        return bool(keywords) and _takes(model, keywords)
    return isinstance(value, tuple) and len(value) > 1 and not hasattr(value, "_fields")


def is_own_batch(value: Any) -> bool:
    """Whether this is a library's own kind of batch, such as torch_geometric's, over whose parts one may iterate."""
    return not isinstance(value, Tensor | Mapping | nn.Module) and callable(getattr(value, "to", None))


def loader_calls(model: nn.Module, loader: Iterable[Any]) -> Iterator[Call]:
    """One call for each batch, on the model's device, without labels.

    A batch is a tensor; a mapping of keyword arguments, `LABELS` left out unless the forward requires them, where one
    alone may have any name; or a tuple or list with as many inputs as the forward requires in front. An input that is a
    tuple holds all arguments.
    """
    device = next((tensor.device for tensor in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    for batch in loader:
        yield _batch_call(model, batch).mapped(lambda tensor: tensor.to(device))


def _batch_call(model: nn.Module, batch: Any) -> Call:
    if isinstance(batch, Mapping):
        return _named_call(model, batch)
    if not isinstance(batch, tuple | list) or hasattr(batch, "_fields"):
        return Call((batch,), {})
    first = batch[0]
    if isinstance(first, Mapping):
        return _named_call(model, first)
    if isinstance(first, tuple):
        return Call(first, {})
    count = 1 if len(batch) == 1 else _required(model)
    if count is None or not 0 < count <= len(batch):
        raise UsageError(
            f"a batch of the loader has {len(batch)} parts, and which of them {type(model).__name__}.forward takes its "
            "signature does not say: let the loader give ((input, ...), labels), or mappings of keyword arguments"
        )
    return Call(tuple(batch[:count]), {})


def _named_call(model: nn.Module, batch: Mapping[str, Any]) -> Call:
    keywords = _keywords(model, batch)
    if _takes(model, keywords):
        return Call((), keywords)
    inputs = {key: value for key, value in batch.items() if key not in LABELS}
    if len(inputs) == 1 and _required(model) == 1:
        return Call(tuple(inputs.values()), {})
    raise UsageError(
        f"a batch has {', '.join(map(str, batch))}, and {type(model).__name__}.forward takes "
        f"{', '.join(forward_parameters(model))}: name the inputs as it does"
    )


def _keywords(model: nn.Module, batch: Mapping[str, Any]) -> dict[str, Any]:
    parameters = forward_parameters(model)
    named = {name for name, parameter in parameters.items() if parameter.kind is not parameter.VAR_KEYWORD}
    open_ended = len(named) < len(parameters)
    needed = {name for name in named if parameters[name].default is inspect.Parameter.empty}
    wanted = needed | {key for key in batch if key not in LABELS and (open_ended or key in named)}
    return {key: value for key, value in batch.items() if key in wanted}


def _takes(model: nn.Module, keywords: Mapping[Any, Any]) -> bool:
    if not all(isinstance(key, str) for key in keywords):
        return False
    try:
        inspect.signature(_forward(model)).bind(**keywords)
    except TypeError:
        return False
    return True


def _required(model: nn.Module) -> int | None:
    """How many arguments the forward needs by place; None where it takes any number."""
    parameters = forward_parameters(model).values()
    if any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters):
        return None
    by_place = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    places = [parameter for parameter in parameters if parameter.kind in by_place]
    required = sum(parameter.default is inspect.Parameter.empty for parameter in places)
    return required or min(1, len(places))


def forward_parameters(model: nn.Module) -> Mapping[str, inspect.Parameter]:
    """The arguments of the model's forward, by name."""
    return inspect.signature(_forward(model)).parameters


def _forward(model: nn.Module) -> Callable[..., Any]:
    """The forward as the model's author wrote it, inside of what wraps it."""
    while (inner := _wrapped(model)) is not None:
        model = inner
    if isinstance(model, Variational | Rerouting):
        forward: Callable[..., Any] = plain_class(type(model)).forward.__get__(model)
        return forward
    return model.forward


def _wrapped(model: nn.Module) -> nn.Module | None:
    """The model inside torch.compile's or DataParallel's wrapper."""
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        module: nn.Module = model.module
        return module
    inner = getattr(model, "_orig_mod", None)
    return inner if isinstance(inner, nn.Module) else None
