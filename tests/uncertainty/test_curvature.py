"""The curvature of any Linear layer against the generalized Gauss-Newton matrix from the whole Jacobian."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev

import bayesify
from bayesify.errors import UsageError
from bayesify.uncertainty.calibration import Calibration
from bayesify.uncertainty.curvature import curvatures, last_curvature
from bayesify.uncertainty.held_out import held_out


class Pooled(nn.Module):
    """A layer at each of several positions, whose mean goes on; what follows changes its output in place."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 4), nn.Linear(4, outputs)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(torch.nn.functional.elu(self.first(x), inplace=True).mean(1))
        return y


def exact(model: Any, name: str, x: Tensor, hessians: Tensor, basis: Tensor) -> Tensor:
    """diag of Σₙ Jₙᵀ Hₙ Jₙ, along the basis's columns for each output."""
    weights = {key: value.detach() for key, value in model.named_parameters()}
    jacobian = jacrev(lambda w: functional_call(model, {**weights, name: w}, x))(weights[name])
    turned = torch.einsum("ncki,ij->nckj", jacobian.double(), basis)
    return torch.einsum("nckj,ncd,ndkj->kj", turned, hessians, turned)


@pytest.mark.parametrize("task", ["classification", "binary", "regression", "halves"])
def test_the_diagonal_of_the_gauss_newton_matrix(task: str) -> None:
    """Each of 300 · 64 squares has a relative variance of about 2: off by 0.1 is 10 standard errors."""
    torch.manual_seed(0)
    plain, x = Pooled(4).double(), 2 * torch.randn(300, 5, 3, dtype=torch.float64)
    with torch.no_grad():
        output = plain(x)
    targets = {"classification": output.argmax(-1), "binary": (output > 0).long(), "regression": output + 0.5}
    targets["halves"] = output[:, :2] + 1.0
    model = bayesify.convert(plain, "flipout")
    with bayesify.posterior_mean(model), torch.no_grad():
        named: Any = "regression" if task == "halves" else task
        data = held_out(model, [(x, targets[task])], Calibration(named), None)
        first, last = curvatures(model, [model.first, model.last], data, data, draws=64)
        closed = last_curvature(model, model.last, data, data)
    p = torch.softmax(output, -1)
    variances = {"binary": torch.sigmoid(output) * torch.sigmoid(-output), "regression": torch.full_like(output, 4.0)}
    precision = (-output[:, 2:]).exp() / _factor(output, targets["halves"])
    variances["halves"] = torch.cat([precision, torch.full_like(precision, 0.5)], 1)
    whole = torch.diag_embed(p) - p.unsqueeze(-1) * p.unsqueeze(-2)
    hessians = whole if task == "classification" else torch.diag_embed(variances[task])
    for name, found, tolerance in (("first", first, 0.1), ("last", last, 0.1), ("last", closed, 1e-3)):
        expected = exact(plain, f"{name}.weight", x, hessians, found.basis)
        torch.testing.assert_close(found.precision, expected, rtol=tolerance, atol=0)


def _factor(output: Tensor, target: Tensor) -> float:
    """What the variance of halves is multiplied by to fit best: where that is better than 1."""
    mean, log_variance = output.chunk(2, -1)
    return float(((target - mean).square() / log_variance.exp()).mean())


def test_a_layer_that_the_data_do_not_reach_is_told() -> None:
    model = bayesify.convert(Pooled(3), "flipout")
    model.aside = bayesify.flipout(nn.Linear(2, 2))
    x, labels = torch.randn(8, 5, 3), torch.randint(3, (8,))
    with pytest.raises(UsageError, match="do not reach FlipoutLinear"):
        bayesify.fit_std(model, [(x, labels)], task="classification", layers="**", samples=2)
