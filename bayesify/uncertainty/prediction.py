"""What `predict` returns: the predictive mean, and its uncertainty as total = aleatoric + epistemic."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from statistics import NormalDist
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ..errors import UsageError
from .conformal import Conformal, mass_before
from .mixtures import mixture_quantile

Task = Literal["classification", "binary", "regression"]
TASKS: tuple[str, ...] = get_args(Task)


@dataclass(frozen=True)
class Prediction:
    """A model's prediction over its posterior, a pytree of tensors.

    Every field has the structure of the model's output: one tensor, or the same dict, tuple or ModelOutput of
    tensors. What is not a floating point tensor there is passed through as the last forward pass gave it.

    Attributes:
        mean: the mean over draws of the output; of the class probabilities under `task="classification"`.
        total: the uncertainty of the prediction, `aleatoric + epistemic`. Classification: the entropy of `mean` in
            nats, without the dimension of the classes. Else the predictive variance, of the output's shape.
        aleatoric: what is left if the weights were known. Classification: the expected entropy. Regression: the
            variance of the observation noise. Without a task: zero.
        epistemic: what comes from not knowing the weights. Classification: the mutual information of label and
            weights (Houlsby et al. 2011). Else: the unbiased variance of the output over draws.
        std: classification: the std of each class probability over draws. Else: sqrt(total), in the output's unit.
        log_mean: classification: log(mean) by log-sum-exp, finite where `mean` is rounded to zero. Else None.
        samples: with `keep=True` the outputs (class probabilities) of all draws, (samples, *output). Else None.
        noise_samples: with `keep=True` and a noise that the model predicts, its variance in every draw. Else None.
        task: as `predict` was told; `binary` is a classification into no and yes, the last dimension of `mean`.
        dim: the dimension of the classes.
        conformal: what `set` and `interval` take their size from, where `calibrate` fitted that.
    """

    mean: Any
    total: Any
    aleatoric: Any
    epistemic: Any
    std: Any
    log_mean: Any = None
    samples: Any = None
    noise_samples: Any = None
    task: Task | None = None
    dim: int = -1
    conformal: Conformal | None = None

    def to(self, device: torch.device | str) -> Prediction:
        """The same with all its tensors on the device."""
        moved: Prediction = pytree.tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, self)
        return moved

    @property
    def label(self) -> Any:
        """The most probable class: int64, of the output's shape without the dimension of the classes.

        Raises:
            UsageError: the prediction is not of classes.
        """
        self._needs("label", "classification")
        return each_tensor(lambda mean: mean.argmax(self.dim), self.mean)

    @property
    def confidence(self) -> Any:
        """The probability of `label`, between 0 and 1.

        Raises:
            UsageError: the prediction is not of classes.
        """
        self._needs("confidence", "classification")
        return each_tensor(lambda mean: mean.amax(self.dim), self.mean)

    def set(self, level: float = 0.9) -> Any:
        """The smallest set of classes whose probabilities add up to `level`: True for its members, of `mean`'s shape.

        After `calibrate`: up to what held the label in `level` of the calibration data (see `conformal.py`), and at
        least one class.

        Raises:
            UsageError: the prediction is not of classes, or the level does not lie between 0 and 1.
        """
        self._needs("set", "classification")
        _refuse_outside(level, "level")
        return each_tensor(lambda mean: prediction_set(mean, level, self.dim, self.conformal), self.mean)

    def interval(self, level: float = 0.9) -> tuple[Any, Any]:
        """The central interval that holds `level` of the predictive distribution: (lower, upper), as `quantile`.

        After `calibrate` of a regression: mean ± so many std as held `level` of the calibration targets, infinitely
        many where they are too few to say (see `conformal.py`).
        """
        _refuse_outside(level, "level")
        if self.conformal is not None and self.task == "regression":
            bound = self.conformal.bound(level)
            ends = (each_tensor(lambda m, s, way=way: m + way * bound * s, self.mean, self.std) for way in (-1, 1))
            lower, upper = ends
            return lower, upper
        return self.quantile((1 - level) / 2), self.quantile((1 + level) / 2)

    def quantile(self, q: float) -> Any:
        """The q-quantile of the predictive distribution, in the output's unit and of its shape.

        With kept samples that of the draws, under `regression` with the observation noise around each of them: a
        mixture of normals. Without them that of the normal distribution with `mean` and `std`. Of classes: the
        quantile of each class probability over the kept draws.

        Raises:
            UsageError: q does not lie between 0 and 1; or the prediction is of classes and no samples were kept.
        """
        _refuse_outside(q, "q")
        if self.samples is None:
            if self.task == "classification":
                raise UsageError("quantiles of class probabilities need the draws: predict(..., keep=True)")
            z = NormalDist().inv_cdf(q)
            return each_tensor(lambda mean, std: mean + z * std, self.mean, self.std)
        if self.task == "regression":
            noise = self.aleatoric if self.noise_samples is None else self.noise_samples
            return each_tensor(lambda _, samples, of: mixture_quantile(samples, of, q), self.mean, self.samples, noise)
        return each_tensor(lambda _, samples: _quantile(samples, q), self.mean, self.samples)

    def _repr_html_(self) -> str:
        from ..report.predictions import as_html

        names = ["label", "confidence"] if self.task == "classification" else ["mean", "std"]
        names += ["total", "aleatoric", "epistemic"]
        parts = {name: pytree.tree_flatten_with_path(getattr(self, name))[0] for name in names}
        return as_html(self.task, {name: [(leaf_name(path), leaf) for path, leaf in parts[name]] for name in names})

    def _needs(self, name: str, task: Task) -> None:
        if self.task != task:
            raise UsageError(f"`{name}` is for task={task!r}, and this prediction was made with task={self.task!r}")


def two_logits(logit: Tensor) -> Tensor:
    """Of no and yes, (..., 2): their softmax is the sigmoid."""
    return torch.stack([torch.zeros_like(logit), logit], -1)


def each_tensor(function: Callable[..., Tensor], *trees: Any) -> Any:
    """The function of the corresponding tensors of trees of one structure, where the first tree has a float tensor."""

    def mapped(first: Any, *others: Any) -> Any:
        return function(first, *others) if is_float(first) else first

    return pytree.tree_map(mapped, *trees)


def leaf_name(path: Any) -> str:
    """The place of a leaf in an output: `logits`, or `0`; empty for a single tensor."""
    return ".".join(str(getattr(key, "key", getattr(key, "idx", key))) for key in path)


def is_float(leaf: Any) -> bool:
    """Whether this leaf of an output is measured, and not passed through."""
    return isinstance(leaf, Tensor) and leaf.is_floating_point()


def prediction_set(mean: Tensor, level: float, dim: int, conformal: Conformal | None) -> Tensor:
    """True for the classes in the set: those with less than `level` of the probability before them, in their order."""
    before = mass_before(mean, dim)
    return before < level if conformal is None else before <= conformal.bound(level)


def _quantile(samples: Tensor, q: float) -> Tensor:
    """Linear between the two nearest draws, as torch.quantile, which refuses large tensors."""
    ordered, at = samples.sort(0).values, q * (len(samples) - 1)
    low = int(at)
    high = min(low + 1, len(samples) - 1)
    return torch.lerp(ordered[low], ordered[high], at - low)


def _refuse_outside(value: float, name: str) -> None:
    if not 0 < value < 1:
        raise UsageError(f"{name}={value} does not lie between 0 and 1")


_STATIC = ("task", "dim", "conformal")
_FIELDS = [field.name for field in fields(Prediction) if field.name not in _STATIC]


def _flatten(prediction: Prediction) -> tuple[list[Any], Any]:
    return [getattr(prediction, name) for name in _FIELDS], tuple(getattr(prediction, name) for name in _STATIC)


def _unflatten(children: Any, context: Any) -> Prediction:
    return Prediction(*children, *context)


pytree.register_pytree_node(Prediction, _flatten, _unflatten, serialized_type_name="bayesify.Prediction")
