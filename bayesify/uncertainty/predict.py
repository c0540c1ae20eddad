"""`predict`: what a model says about its inputs, and how sure it is.

Draws are summed up as they come: memory is that of one pass and a few tensors of the output's size, however many they
are. Dropout is off and BatchNorm keeps its statistics, also in a model that training left in train mode; modules in
train mode inside of a model in eval mode are so on purpose and stay so. All modes are as before afterwards, and so are
the buffers of modules in train mode.

What else a forward writes to its model (a counter, a cache) is as its passes left it, trials among them. Draws of one
that reads that again hang together: put it back and call the model for each draw.

Rows that a model picks or sorts by itself, as a detector does its boxes, are other ones in each draw, and their mean is
of nothing: predict what comes before, or look at each draw, `with bayesify.draw(model, seed=...)`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..errors import UsageError, did_you_mean
from ..files.weight_warnings import warn_of_not_finite
from ..nn.kl import layers_of
from ..report.progress import progressed
from .calibration import Calibration, stored_calibration
from .calls import Call, called, given_call, is_loader, loader_calls
from .measures import measure
from .observation_noise import Noise, settled_noise, split_noise, with_noise
from .outputs import flattened
from .passes import Sampler, undisturbed
from .prediction import TASKS, Prediction, Task, each_tensor, is_float, two_logits

_FIELDS = ("mean", "total", "aleatoric", "epistemic", "std", "log_mean", "samples", "noise_samples")


def predict(
    model: nn.Module, *inputs: Any, samples: int = 32, task: Task | None = None, output: str | int | None = None,
    dim: int = -1, noise: Noise = None, seed: int | None = None, chunk: int | None = None, keep: bool = False,
    progress: bool | None = None,
) -> Prediction:  # fmt: skip
    """The predictive mean of a converted model and its uncertainty, over draws of the posterior and without gradients.

    Args:
        inputs: the model's arguments; or one mapping, its arguments by keyword; or one loader of batches, which are
            tensors, mappings, or tuples (inputs..., labels...), and whose predictions are joined along dimension 0.
            A list is an argument, but for one of tuples, or of mappings that name the forward's arguments: a loader.
        samples: how many draws, at least 2.
        task: "classification" of logits along `dim`; "binary": each logit is a sigmoid's, predicted as the classes 0
            and 1 in a new last dimension; "regression" with observation noise; None: mean and variance.
        output: which part of the output to predict: a key, an attribute or a place. None is all of it.
        dim: the dimension of the classes, 1 for maps (N, classes, H, W); with `noise="halves"` that of the halves.
        noise: the std of regression's observation noise, a number or a tensor that broadcasts to the output. Or where
            the model gives its log-variance: a key or a place like "1", or "halves" of the output along `dim`.
        seed: makes the draws reproducible, and leaves the global generators as they were.
        chunk: the most examples of one forward pass.
        keep: also return the outputs of all draws.
        progress: show a bar on stderr; None: on a terminal, where a loader takes over two seconds.

    Raises:
        NotVariationalError: the model has no variational layer.
        UsageError: arguments do not fit each other or the output; examples that must be in dimension 0 are not.
    """
    _refuse_wrong(model, samples, task, chunk)
    fitted = stored_calibration(model)
    fitted = fitted if fitted is not None and fitted.fits(task, output, dim, noise) else None
    noise = settled_noise(task, noise, fitted)
    reader = _Reader(model, task, output, dim, noise, keep, fitted)
    with undisturbed(model, seed):
        calls = _calls(model, inputs, progress)
        pieces = [reader.read(piece, samples) for call in calls for piece in reader.chunks(call, chunk)]
    if not pieces:
        raise UsageError("the loader gave no batch")
    prediction = with_noise(reader.joined(pieces), noise)
    warn_of_not_finite(None if _is_finite(prediction.mean) else model, f"predict({type(model).__name__})")
    return prediction


def _is_finite(mean: Any) -> bool:
    """Whether all numbers are, by their sum: of great ones it may be infinite, and then the weights tell."""
    return all(isfinite(leaf.sum().item()) for leaf in pytree.tree_leaves(mean) if is_float(leaf))


def _calls(model: nn.Module, inputs: tuple[Any, ...], progress: bool | None) -> Iterable[Call]:
    if len(inputs) == 1 and is_loader(model, inputs[0]):
        return loader_calls(model, progressed(inputs[0], "Predicting", progress))
    return [given_call(model, inputs)]


class _Reader:
    """Reads predictions off a model, one batch after the other."""

    def __init__(
        self, model: nn.Module, task: Task | None, output: str | int | None, dim: int, noise: Noise, keep: bool,
        fitted: Calibration | None,
    ) -> None:  # fmt: skip
        self.model, self.output, self.noise, self.keep, self.fitted = model, output, noise, keep, fitted
        self.binary = task == "binary"
        self.task: Task | None = "classification" if self.binary else task
        self.dim = -1 if self.binary else dim
        self.sampler = Sampler(model, self._run)
        self.structure: pytree.TreeSpec | None = None

    def chunks(self, call: Call, chunk: int | None) -> Iterator[Call]:
        """The call's examples, so many at a time."""
        examples = call.examples
        if chunk is None or examples <= chunk:
            yield call
            return
        if not self.sampler.examples_apart(call):
            raise UsageError(
                f"chunk={chunk} splits along dimension 0, and the examples of this call of {type(self.model).__name__} "
                "do not lie there, or depend on each other: predict without chunk"
            )
        for start in range(0, examples, chunk):
            yield call.batched(lambda tensor, start=start: tensor[start : start + chunk])  # type: ignore[misc]

    def read(self, call: Call, samples: int) -> list[Any]:
        """The leaves of the prediction for one call: what was measured of float tensors, and the rest as it is."""
        measures: list[Any] = []
        leaves: list[Any] = []
        shapes: list[torch.Size] | None = None
        for leaves in self.sampler.draws(call, samples):
            *outputs, log_variances = leaves
            own_shapes = [leaf.shape[1:] for leaf in outputs if is_float(leaf)]
            if shapes is None:
                measures = [measure(self.task, self.dim, self.keep) if is_float(leaf) else None for leaf in outputs]
                shapes = own_shapes
                if self.task == "classification" and self.dim == -1:
                    _warn_of_maps(call, shapes)
            elif own_shapes != shapes:
                raise UsageError(_other_shapes(self.model, shapes, own_shapes))
            for own, leaf in zip(measures, outputs, strict=True):
                if own is not None:
                    own.add(leaf, log_variances)
        return [leaf if own is None else own.result() for own, leaf in zip(measures, leaves[:-1], strict=True)]

    def joined(self, pieces: list[list[Any]]) -> Prediction:
        """The pieces as one prediction, of the output's structure."""
        assert self.structure is not None
        leaves = [self._joined(list(own)) for own in zip(*pieces, strict=True)]
        fields = leaves[0] if self.structure.is_leaf() else self._fields(leaves, self.structure)
        conformal = None if self.fitted is None else self.fitted.conformal
        return Prediction(**fields, task=self.task, dim=self.dim, conformal=conformal)

    def _fields(self, leaves: list[Any], structure: pytree.TreeSpec) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        for name in _FIELDS:
            values = [leaf[name] if isinstance(leaf, dict) else leaf for leaf in leaves]
            absent = all(leaf[name] is None for leaf in leaves if isinstance(leaf, dict))
            fields[name] = None if absent else pytree.tree_unflatten(values, structure)
        return fields

    def _joined(self, pieces: list[Any]) -> Any:
        """One leaf of all batches, along dimension 0."""
        first = pieces[0]
        if len(pieces) == 1:
            return first
        if isinstance(first, Tensor) and first.dim():
            return _cat(pieces, 0)
        if not isinstance(first, dict):
            return first if all(piece is first or _equal(piece, first) for piece in pieces) else pieces
        if self.task == "classification" and self.dim % first["mean"].dim() == 0:
            raise UsageError(f"dim={self.dim}: the classes are in dimension 0, where batches would be joined")
        return {
            name: None if first[name] is None else _cat([piece[name] for piece in pieces], int("samples" in name))
            for name in _FIELDS
        }

    def _run(self, call: Call) -> list[Any]:
        """One forward pass: the leaves of what is measured, and last the log-variance or None."""
        whole = called(self.model, call)
        part, log_variance = split_noise(whole, self.noise, self.output, self.dim)
        if self.fitted is not None:
            part, log_variance = self.fitted.applied(part, log_variance)
        if self.binary:
            part = each_tensor(two_logits, part)
        leaves, self.structure = flattened(part, f"{type(self.model).__name__}")
        return [*leaves, log_variance]


def _warn_of_maps(call: Call, shapes: list[torch.Size]) -> None:
    """Classes are not where the output lies as an image does that was given: there are its columns."""
    images = [tensor.shape for tensor in call.tensors if tensor.dim() > 3 and tensor.is_floating_point()]
    for shape in shapes:
        if any(len(shape) == len(image) and shape[2:] == image[2:] for image in images):
            warnings.warn(
                f"predict takes classes along the last dimension of the output {tuple(shape)}, which are the columns "
                "of an input's images: of maps (N, classes, H, W) say dim=1",
                stacklevel=4,
            )


def _other_shapes(model: nn.Module, before: list[torch.Size], after: list[torch.Size]) -> str:
    """Boxes that a detector finds, or samples of a voice: a mean over draws does not exist."""
    pairs = zip(before, after, strict=False)
    one, other = next(((tuple(a), tuple(b)) for a, b in pairs if a != b), (len(before), len(after)))
    return (
        f"an output of {type(model).__name__} is of another shape in each draw, {one} and {other}, so that there is no "
        "mean: pick a part that is not by output=, or look at each draw: with bayesify.draw(model, seed=...): model(x)"
    )


def _equal(one: Any, other: Any) -> bool:
    return torch.equal(one, other) if isinstance(one, Tensor) else bool(one == other)


def _cat(tensors: list[Tensor], along: int) -> Tensor:
    try:
        return torch.cat(tensors, along)
    except RuntimeError:
        shapes = ", ".join(sorted({str(tuple(tensor.shape)) for tensor in tensors}))
        raise UsageError(
            f"the outputs of the batches, {shapes}, cannot be joined along their dimension {along}: pad all batches to "
            "one length, or pick a part of the output by output="
        ) from None


def _refuse_wrong(model: nn.Module, samples: int, task: Task | None, chunk: int | None) -> None:
    layers_of(model)
    if samples < 2:
        raise UsageError(f"samples={samples}: a spread needs 2 draws at least; without noise: bayesify.posterior_mean")
    if chunk is not None and chunk < 1:
        raise UsageError(f"chunk={chunk} is not a number of examples")
    if task is not None and task not in TASKS:
        raise UsageError(f"task={task!r} is none of {', '.join(TASKS)} and None.{did_you_mean(str(task), TASKS)}")
