"""The curvature of a likelihood in Linear layers' weights, in the principal axes of their inputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UsageError
from .calibration import Calibration
from .calls import called
from .held_out import HeldOut, Labels, YesOrNo
from .observation_noise import HALVES, split_noise
from .outputs import one_tensor

DRAWS = 8  # of targets, for the curvature in inner layers
_MOST_NUMBERS = 2**24  # in the gradients of single examples that are held at a time


@dataclass(frozen=True, eq=False)
class Curvature:
    """The generalized Gauss-Newton curvature of the summed NLL.

    Attributes:
        basis: V, (inputs, inputs), its columns the principal axes of the inputs weighted by curvature.
        precision: D, (outputs, inputs): along each axis, for each output.
    """

    basis: Tensor
    precision: Tensor


@dataclass(frozen=True, eq=False)
class _Seen:
    """What one batch shows of one layer, in float64: inputs and, for each draw, the gradient in the outputs.

    Attributes:
        inputs: (examples, rows of each, inputs).
        gradients: (examples, rows of each, outputs).
    """

    inputs: Tensor
    gradients: list[Tensor]


def last_curvature(model: nn.Module, layer: nn.Module, data: HeldOut, judge: HeldOut) -> Curvature:
    """That of the layer whose output is the model's, exactly, by one pass over the data.

    The noise of a regression is that which fits the `judge`'s data.

    Raises:
        UsageError: the layer's output is not the part of the model's output that the likelihood is asked of.
    """
    fitted, rows = _fitted(model, judge), []
    for call, target in data.batches:
        with _watched([layer]) as (calls,):
            output = called(model, call)
        part = one_tensor(output, data.blank.output)
        if len(calls) != 1 or not _same(part, calls[0][1]):
            raise UsageError(
                "the output of the last Linear layer is not the model's, or not the part of it that output= names"
            )
        second = _second_derivative(data, fitted, output, target)
        rows.append((calls[0][0].double().flatten(0, -2), second.flatten(0, -2)))
    inputs, hessian = (torch.cat(parts) for parts in zip(*rows, strict=True))
    basis = torch.linalg.eigh((inputs * hessian.sum(1, keepdim=True)).T @ inputs).eigenvectors
    return Curvature(basis, hessian.T @ (inputs @ basis).square())


def curvatures(
    model: nn.Module, layers: Sequence[Any], data: HeldOut, judge: HeldOut, draws: int = DRAWS
) -> list[Curvature]:
    """That of any Linear layers: unbiased, by `draws` backward passes for each batch, twice over the data.

    The Fisher matrix is the curvature of these likelihoods (Martens 2020, section 9.2): the mean of squared gradients
    for targets that are drawn from the model's own predictions.
    """
    fitted = _fitted(model, judge)
    grams = [torch.zeros(()) for _ in layers]
    for every in _batches(model, layers, data, fitted, draws):
        for at, seen in enumerate(every):
            weight = torch.stack([gradient.square().sum(-1, keepdim=True) for gradient in seen.gradients]).mean(0)
            grams[at] = grams[at] + ((seen.inputs * weight).flatten(0, 1).T @ seen.inputs.flatten(0, 1))
    bases = [torch.linalg.eigh(gram).eigenvectors for gram in grams]
    precisions = [torch.zeros(()) for _ in layers]
    for every in _batches(model, layers, data, fitted, draws):
        for at, seen in enumerate(every):
            turned = seen.inputs @ bases[at]
            squares = torch.stack([_summed_squares(gradient, turned) for gradient in seen.gradients]).mean(0)
            precisions[at] = precisions[at] + squares
    return [Curvature(*pair) for pair in zip(bases, precisions, strict=True)]


def _batches(
    model: nn.Module, layers: Sequence[Any], data: HeldOut, fitted: Calibration, draws: int
) -> Iterator[list[_Seen]]:
    """For each batch what it shows of each layer."""
    for call, target in data.batches:
        with torch.enable_grad(), _watched(layers) as calls:
            output = called(model, call)
        part = one_tensor(output, data.blank.output)
        unused = [at for at, of_layer in enumerate(calls) if not of_layer]
        if unused:
            raise UsageError(f"the data do not reach {layers[unused[0]]}: there is no curvature to fit its std to")
        flat = [output for of_layer in calls for _, output in of_layer]
        gradients = []
        for _ in range(draws):
            pull = _score(data, _second_derivative(data, fitted, output, target), part, target)
            gradients.append(iter(torch.autograd.grad(part, flat, pull.to(part), retain_graph=True)))
        by_call = [[(x, [next(draw) for draw in gradients]) for x, _ in of_layer] for of_layer in calls]
        yield [_seen(layer, of_layer) for layer, of_layer in zip(layers, by_call, strict=True)]


def _seen(layer: Any, calls: list[tuple[Tensor, list[Tensor]]]) -> _Seen:
    """All calls of a layer: what belongs to one example stands together, since its gradients add up."""
    inputs = [_by_example(layer, x) for x, _ in calls]
    draws = zip(*(gradients for _, gradients in calls), strict=True)
    gradients = [[_by_example(layer, gradient) for gradient in draw] for draw in draws]
    if len({len(x) for x in inputs}) > 1:
        inputs = [x.reshape(1, -1, x.shape[-1]) for x in inputs]
        gradients = [[one.reshape(1, -1, one.shape[-1]) for one in draw] for draw in gradients]
    return _Seen(torch.cat(inputs, 1), [torch.cat(draw, 1) for draw in gradients])


def _by_example(layer: Any, tensor: Tensor) -> Tensor:
    """(examples, rows of each, features). All rows are one example's where it is not known which belong together.

    That is right too: the draws of different examples are independent, so that in the mean their products vanish.
    """
    tensor, settings = tensor.detach().double(), layer._settings
    apart = tensor.dim() > 1 and 0 <= settings.batch_dim < tensor.dim() - 1 and settings.rows <= 1
    tensor = tensor.movedim(settings.batch_dim, 0) if apart else tensor.unsqueeze(0)
    return tensor.reshape(len(tensor), -1, tensor.shape[-1])


def _summed_squares(gradient: Tensor, inputs: Tensor) -> Tensor:
    """Σₙ (Σₚ gₙₚₖ xₙₚⱼ)², over examples n and their rows p: (outputs, inputs)."""
    if gradient.shape[1] == 1:
        return gradient[:, 0].square().T @ inputs[:, 0].square()
    size = max(1, _MOST_NUMBERS // (gradient.shape[-1] * inputs.shape[-1]))
    chunks = zip(torch.split(gradient, size), torch.split(inputs, size), strict=True)
    return torch.stack([torch.einsum("npk,npj->nkj", *chunk).square().sum(0) for chunk in chunks]).sum(0)


@contextmanager
def _watched(layers: Sequence[nn.Module]) -> Iterator[list[list[tuple[Tensor, Tensor]]]]:
    """For each layer the inputs and outputs of its calls inside."""
    calls: list[list[tuple[Tensor, Tensor]]] = [[] for _ in layers]

    def watch(at: int) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
            if torch.is_grad_enabled() and not output.requires_grad:
                output.requires_grad_()
            calls[at].append((inputs[0], output))
            return output.clone()  # what comes next may change it in place

        return hook

    handles = [layer.register_forward_hook(watch(at)) for at, layer in enumerate(layers)]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(one, other, rtol=0, atol=0, equal_nan=True)


def _fitted(model: nn.Module, judge: HeldOut) -> Calibration:
    return judge.blank if isinstance(judge, Labels) else judge.fit(judge.outputs(model, 1))


def _second_derivative(data: HeldOut, fitted: Calibration, output: Any, target: Any) -> Tensor:
    """That of each example's NLL in each element of its output; of a predicted log-variance 1/2, its expectation.

    0 where there is no label.
    """
    part, dim = one_tensor(output, data.blank.output).detach().double(), data.blank.dim
    if isinstance(data, Labels):
        probabilities = torch.sigmoid(part) if isinstance(data, YesOrNo) else torch.softmax(part, dim)
        return probabilities * (1 - probabilities) * data.counted(part, target)
    if not isinstance(fitted.noise, str):
        std = torch.as_tensor(fitted.noise, dtype=part.dtype, device=part.device)
        return std.square().reciprocal().expand_as(part)
    _, log_variance = split_noise(output, fitted.noise, data.blank.output, dim)
    assert log_variance is not None
    precision = (-log_variance.detach().double()).exp() / fitted.noise_factor
    return torch.cat([precision, torch.full_like(precision, 0.5)], dim) if fitted.noise == HALVES else precision


def _score(data: HeldOut, second: Tensor, part: Tensor, target: Any) -> Tensor:
    """The gradient of the NLL in the output for a target drawn from the prediction. Its covariance is the curvature."""
    if not isinstance(data, Labels) or isinstance(data, YesOrNo):
        return second.sqrt() * (2 * torch.randint_like(second, 2) - 1)
    probabilities = torch.softmax(part.detach().double(), data.blank.dim)
    rows = probabilities.movedim(data.blank.dim, -1)
    labels = torch.multinomial(rows.flatten(0, -2), 1).view(rows.shape[:-1])
    drawn = nn.functional.one_hot(labels, rows.shape[-1]).movedim(-1, data.blank.dim)
    return (drawn - probabilities) * data.counted(part, target)
