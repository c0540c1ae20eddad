"""The curvature of a likelihood in a last layer's weights, in the principal axes of its inputs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import UsageError
from .held_out import HeldOut, Labels, YesOrNo
from .outputs import picked


@dataclass(frozen=True, eq=False)
class Curvature:
    """The generalized Gauss-Newton curvature of the summed NLL.

    Attributes:
        basis: V, (inputs, inputs), its columns the principal axes of the inputs weighted by curvature.
        precision: D, (outputs, inputs): along each axis, for each output.
    """

    basis: Tensor
    precision: Tensor


def curvature(model: nn.Module, layer: nn.Module, data: HeldOut, judge: HeldOut) -> Curvature:
    """By one pass over the data. The noise of a regression is that which fits the `judge`'s data.

    Raises:
        UsageError: the layer's output is not the part of the model's output that the likelihood is asked of.
    """
    inputs, outputs = _seen(model, layer, data)
    hessian = _hessian(model, data, judge, outputs)
    basis = torch.linalg.eigh((inputs * hessian.sum(1, keepdim=True)).T @ inputs).eigenvectors
    return Curvature(basis, hessian.T @ (inputs @ basis).square())


def _seen(model: nn.Module, layer: nn.Module, data: HeldOut) -> tuple[Tensor, Tensor]:
    """The layer's inputs and outputs, in float64: (n, inputs) and (n, outputs)."""
    calls: list[tuple[Tensor, Tensor]] = []
    handle = layer.register_forward_hook(lambda _, inputs, output: calls.append((inputs[0], output)))
    try:
        for at, (call, _) in enumerate(data.batches, 1):
            part = picked(model(*call.args, **call.kwargs), data.blank.output)
            if len(calls) != at or not isinstance(part, Tensor) or not _same(part, calls[-1][1]):
                raise UsageError(
                    "the output of the last Linear layer is not the model's, or not the part of it that output= names"
                )
    finally:
        handle.remove()
    inputs, outputs = (torch.cat([pair[at].flatten(0, -2) for pair in calls]).double() for at in (0, 1))
    return inputs, outputs


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(one, other, rtol=0, atol=0, equal_nan=True)


def _hessian(model: nn.Module, data: HeldOut, judge: HeldOut, outputs: Tensor) -> Tensor:
    """The second derivative of each example's NLL in each output: (n, outputs).

    Of a predicted log-variance it is 1/2, its expectation; where there is no label, 0.
    """
    if isinstance(data, Labels):
        probabilities = torch.sigmoid(outputs) if isinstance(data, YesOrNo) else torch.softmax(outputs, -1)
        return probabilities * (1 - probabilities) * data.counted()
    fitted = judge.fit(judge.outputs(model, 1))
    if isinstance(fitted.noise, str):
        means, log_variances = outputs.chunk(2, -1)
        return torch.cat([(-log_variances).exp() / fitted.noise_factor, torch.full_like(means, 0.5)], -1)
    std = torch.as_tensor(fitted.noise, dtype=outputs.dtype, device=outputs.device)
    return std.square().reciprocal().expand_as(outputs)
