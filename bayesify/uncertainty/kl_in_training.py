"""Where the KL goes in training: into the gradients at each optimizer step, or into the loss.

In the loss, gradient accumulation over k batches counts the KL k times. `attach_kl` counts it once for each step, and
needs no change to a training loop that is not one's own.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import Parameter
from torch.optim import Optimizer

from ..errors import UsageError
from ..nn.kl import kl_of, layers_of, total_kl
from ..nn.parametrized_weights import sources
from ..surgery.optimizer import decays_scales
from .missing_gradients import GradientWatch
from .posterior_states import tell_of_priors

Schedule = Callable[[int], float]


def elbo(nll: Tensor, model: nn.Module, n_train: int, beta: float = 1.0) -> Tensor:
    """The negative evidence lower bound for each example, in nats: nll + beta·KL/n_train (Blundell et al. 2015, eq. 3).

    Args:
        nll: the mean negative log-likelihood over a batch.
        n_train: how many examples the training set has.
        beta: the KL's weight: 1 is the posterior of Bayes' rule, less is a cold one.

    Raises:
        NotVariationalError: the model has no variational layer.
        UsageError: n_train or beta is not a positive number (beta may be 0).
    """
    _refuse_wrong(n_train, beta)
    return nll + (beta / n_train) * total_kl(model)


@dataclass(frozen=True)
class Annealing:
    """A KL weight that rises linearly from `start` to `end`, and stays there: call it with the step's number."""

    steps: int
    start: float = 0.0
    end: float = 1.0

    def __call__(self, step: int) -> float:
        """The weight at this step, counted from 0."""
        return self.start + (self.end - self.start) * min(1.0, step / self.steps)


def annealing(steps: int, start: float = 0.0, end: float = 1.0) -> Annealing:
    """A schedule for `attach_kl`'s beta: linear from `start` to `end` in so many optimizer steps (Bowman et al. 2016).

    Raises:
        UsageError: there is no step, or a weight is negative.
    """
    if steps < 1 or start < 0 or end < 0:
        raise UsageError(f"annealing({steps}, start={start}, end={end}) needs a step at least, and no weight below 0")
    return Annealing(steps, start, end)


def attach_kl(optimizer: Optimizer, model: nn.Module, n_train: int, beta: float | Schedule = 1.0) -> AttachedKL:
    """Have every step of the optimizer first add the gradient of beta·KL/n_train, to the tensors that it holds.

    The same as the KL in the loss, once for each step. With a GradScaler the gradient is scaled as all others are.
    Gradients that are clipped before `optimizer.step()` are clipped without the KL, unless `handle.add()` is called
    first (and after `scaler.unscale_(optimizer)`): then the step adds none. Several optimizers each get their own.
    Warns of weight decay on scales; after ten steps, or when it is removed, of posteriors whose scales have had no
    gradient from the loss.

    Args:
        n_train: how many examples the training set has, if the loss is a mean over examples.
        beta: the KL's weight, or a function of the number of steps done, as `annealing` gives one.

    Raises:
        NotVariationalError: the model has no variational layer.
        UsageError: the optimizer holds nothing of the model's posteriors, or has this model's KL already.
    """
    layers = layers_of(model)
    _refuse_wrong(n_train, 1.0 if callable(beta) else beta)
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    ours = (parameter for layer in layers for name in layer.means() for parameter in _tensors(layer, name))
    if not any(id(parameter) in held for parameter in ours):
        raise UsageError(
            "the optimizer holds no posterior of this model: it was made for the model that was copied; make one from "
            "bayesify.param_groups(model)"
        )
    hooks = optimizer._optimizer_step_pre_hooks.values()
    if any(isinstance(hook, AttachedKL) and hook.model is model for hook in hooks):
        raise UsageError("the optimizer has this model's KL already: remove() the first handle, or it counts twice")
    if decays_scales(optimizer, model):
        warnings.warn(_DECAY, stacklevel=2)
    return AttachedKL(optimizer, model, n_train, beta)


_DECAY = (
    "the optimizer's weight decay pulls the posterior's scales to 0, which is a std of 0.69, or of the weight's own "
    "size: bayesify.param_groups(model, lr=..., weight_decay=...) keeps them out of it"
)


class AttachedKL:
    """The handle of `attach_kl`; as a context manager it ends with the block.

    Attributes:
        steps: how many steps have had the KL; what a schedule is asked with. Set it when training resumes.
    """

    def __init__(self, optimizer: Optimizer, model: nn.Module, n_train: int, beta: float | Schedule) -> None:
        self.optimizer, self.model, self.n_train, self.beta, self.steps = optimizer, model, n_train, beta, 0
        self._added = False
        self._watch = GradientWatch(model, optimizer)
        self._handle = optimizer.register_step_pre_hook(self)

    def remove(self) -> None:
        """Leave the optimizer as it was. A warning names the posteriors that training left as their priors."""
        self._handle.remove()
        self._watch.tell()
        if self.steps:
            tell_of_priors(self.model)

    def add(self) -> None:
        """Add the KL's gradient now, ahead of clipping; the next step then adds none."""
        self._add()
        self._added = True

    def __call__(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The optimizer's hook before a step. A closure computes gradients inside of it, so that it gets the KL."""
        if len(args) > 1 and callable(args[1]):
            args = (args[0], self._with_kl(args[1]), *args[2:])
        elif callable(kwargs.get("closure")):
            kwargs = {**kwargs, "closure": self._with_kl(kwargs["closure"])}
        elif not self._added:
            self._add()
        self.steps, self._added = self.steps + 1, False
        self._watch.step()
        return args, kwargs

    def __enter__(self) -> AttachedKL:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if error is None:
            self.remove()
        else:
            self._handle.remove()

    def _with_kl(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        step = self.steps

        def with_kl() -> Any:
            loss = closure()
            kl = self._add(step)
            return loss if loss is None else loss + kl.to(loss.device) if isinstance(loss, Tensor) else loss + float(kl)

        return with_kl

    def _add(self, step: int | None = None) -> Tensor:
        """Add the gradient; the KL, weighted."""
        self._watch.look()
        weight = (self.beta(self.steps if step is None else step) if callable(self.beta) else self.beta) / self.n_train
        held = (parameter for group in self.optimizer.param_groups for parameter in group["params"])
        params = [parameter for parameter in held if parameter.requires_grad]
        with torch.enable_grad():
            kl = weight * kl_of(self.model)
        if not kl.requires_grad:
            return kl
        scale = getattr(self.optimizer, "grad_scale", None)  # a GradScaler's, where the optimizer itself unscales
        for param, grad in zip(params, torch.autograd.grad(kl, params, allow_unused=True), strict=True):
            if grad is not None:
                _accumulate(param, grad if scale is None else grad * scale.to(grad.device, grad.dtype))
        return kl.detach()


@torch.no_grad()
def _accumulate(param: Parameter, grad: Tensor) -> None:
    if param.grad is None:
        param.grad = grad
    elif param.grad.is_sparse:
        param.grad = grad + param.grad
    else:
        param.grad.add_(grad)


def _tensors(layer: Any, name: str) -> list[Any]:
    return [*sources(layer, name), layer.scale_of(name)]


def _refuse_wrong(n_train: int, beta: float) -> None:
    if not 0 < n_train < float("inf"):
        raise UsageError(f"n_train={n_train} is not a number of training examples")
    if not 0 <= beta < float("inf"):
        raise UsageError(f"beta={beta} is not a weight: a finite number that is not negative")
