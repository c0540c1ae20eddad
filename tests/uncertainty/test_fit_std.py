"""`fit_std` is exact where the exact posterior is known, and knows a gap in the data."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bayesify
from bayesify.errors import UsageError
from tests.support import METHODS, judge_mean


def converted(method: str, *layers: nn.Module) -> Any:
    return bayesify.convert(nn.Sequential(*layers), method).eval()


def fitted_linear(method: str) -> tuple[Any, Tensor, Any, float]:
    """A linear regression at its least squares, correlated inputs of very different sizes."""
    x = torch.randn(400, 6) @ torch.randn(6, 6) * torch.logspace(-1, 1, 6)
    y = x @ torch.randn(6, 2) + 0.3 * torch.randn(400, 2)
    model = converted(method, nn.Linear(6, 2, bias=False))
    model[0].weight.data = torch.linalg.lstsq(x, y).solution.T.contiguous()
    found = bayesify.fit_std(model, [(x, y)], task="regression")
    noise = (y - x @ model[0].weight.detach().T).square().mean(0).sqrt()
    return model, x, found, noise


@pytest.mark.parametrize("method", METHODS)
def test_a_linear_regression_has_the_exact_posterior(method: str) -> None:
    """Covariance (XᵀX/σ² + δI)⁻¹ for each output (Bishop 2006, eq. 3.54)."""
    model, x, found, noise = fitted_linear(method)
    basis, std = model[0].weight_basis, model[0].weight_std.detach()
    for k in range(2):
        exact = torch.linalg.inv(x.double().T @ x.double() / noise[k].double() ** 2 + found.precision * torch.eye(6))
        covariance = (basis * std[k].square()) @ basis.T
        torch.testing.assert_close(covariance.double(), exact, rtol=1e-2, atol=1e-3 * float(exact.abs().max()))


@pytest.mark.parametrize("method", METHODS)
def test_the_outputs_vary_as_the_basis_says(method: str) -> None:
    """Var = Σⱼ (xV)ⱼ² stdⱼ², for each row of a batch, and of one draw that is held."""
    model, x, _, _ = fitted_linear(method)
    few = x[:5]
    variance = (few @ model[0].weight_basis).square() @ model[0].weight_std.square().T
    with torch.no_grad():
        center = few @ model[0].weight.T
        passes = torch.stack([model(few) for _ in range(4000)])
        judge_mean("passes", (passes - center).square() / variance, 1.0)
        held = torch.stack([bayesify.revert(model, "sample")[0].weight for _ in range(4000)])
        judge_mean("draws", ((held - model[0].weight) @ few.T).transpose(1, 2).square() / variance, 1.0)
        with bayesify.draw(model, seed=3):
            outputs = model(x)
            solved = torch.linalg.lstsq(x, outputs).solution  # one weight for all examples
            torch.testing.assert_close(x @ solved, outputs, rtol=1e-3, atol=1e-3 * float(outputs.abs().max()))


def test_the_kl_is_that_of_the_two_normals() -> None:
    model, _, found, _ = fitted_linear("flipout")
    layer = model[0]
    prior_mean = torch.zeros_like(layer.weight)
    total = torch.zeros(())
    for k in range(2):
        covariance = (layer.weight_basis * layer.weight_std[k].square()) @ layer.weight_basis.T
        total = total + torch.distributions.kl_divergence(
            torch.distributions.MultivariateNormal(layer.weight[k], covariance),
            torch.distributions.MultivariateNormal(prior_mean[k], torch.eye(6) / found.precision),
        )
    torch.testing.assert_close(model.kl(), total, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("seed", range(3))
def test_it_knows_a_gap_in_the_data_and_leaves_the_mean_as_it_was(seed: int) -> None:
    """Inputs in [-2, -0.7] and [0.7, 2]; the gap between has more epistemic variance than weight noise shows."""
    torch.manual_seed(0)
    x = torch.cat([torch.rand(200, 1) * 1.3 + 0.7, -torch.rand(200, 1) * 1.3 - 0.7])
    y = torch.sin(3 * x) + 0.1 * torch.randn_like(x)
    model = nn.Sequential(nn.Linear(1, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(300):
        optimizer.zero_grad()
        F.mse_loss(model(x), y).backward()
        optimizer.step()
    noisy = bayesify.convert(model, "flipout")
    data: dict[str, Any] = {"task": "regression", "validation": [(x[1::2], y[1::2])], "seed": seed}
    found = bayesify.fit_std(noisy, [(x[::2], y[::2])], **data)
    assert found.nll <= found.nll_before + 0.05
    gap, seen = torch.linspace(-0.4, 0.4, 50).unsqueeze(1), x[:50]
    epistemic = [bayesify.predict(noisy, part, samples=200, seed=0).epistemic for part in (gap, seen)]
    assert epistemic[0].mean() > 2 * epistemic[1].mean()
    with bayesify.posterior_mean(noisy):
        assert torch.equal(noisy(x), model(x))


def test_classes_and_what_follows(tmp_path: Path) -> None:
    """fit_std, then calibrate, then save and load: the same predictions."""
    x = torch.randn(300, 8)
    labels = (x @ torch.randn(8, 3)).argmax(-1)
    model = converted("flipout", nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    train, held_out = [(x[:200], labels[:200])], [(x[200:], labels[200:])]
    found = bayesify.fit_std(model, train, task="classification", validation=held_out)
    assert found.layers == ("2",)
    bayesify.calibrate(model, held_out, task="classification", samples=4)
    bayesify.save(model, tmp_path / "model.pt")
    expected = bayesify.predict(model, x, task="classification", seed=1).mean
    for other in (copy.deepcopy(model), bayesify.load(tmp_path / "model.pt")):
        torch.testing.assert_close(bayesify.predict(other, x, task="classification", seed=1).mean, expected)
    assert "weight_basis" not in dict(bayesify.revert(model).named_buffers())
    bayesify.reset_posterior(model)
    assert not hasattr(model[2], "weight_basis")


def test_an_output_with_one_tensor_needs_no_name() -> None:
    class Named(nn.Sequential):
        def forward(self, x: Tensor) -> Any:
            return {"logits": super().forward(x), "count": len(x)}

    x = torch.randn(60, 8)
    labels, model = (x @ torch.randn(8, 3)).argmax(-1), bayesify.convert(Named(nn.Linear(8, 3)), "flipout").eval()
    named = bayesify.fit_std(copy.deepcopy(model), [(x, labels)], task="classification", output="logits")
    assert bayesify.fit_std(model, [(x, labels)], task="classification") == named
    assert bayesify.fit_std(model, [(x, labels)], task="classification", layers="0").layers == ("0",)


def network() -> tuple[Any, list[Any]]:
    x = torch.randn(120, 8)
    labels = (x @ torch.randn(8, 3)).argmax(-1)
    model = converted("flipout", nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))
    return model, [(x, labels)]


@pytest.mark.parametrize("layers", ["**", ["0", "last"], "re:[02]"])
def test_the_layers_that_are_asked_for_have_the_axes_of_their_inputs(
    layers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No std is more than the prior's, and the KL is that of the two normals; the others have a share of |w|."""
    monkeypatch.setattr("bayesify.uncertainty.fit_std.RELATIVE", (0.1,))
    model, data = network()
    found = bayesify.fit_std(model, data, task="classification", layers=layers, samples=4)
    expected = {"**": ("0", "2", "4"), "re:[02]": ("0", "2")}.get(str(layers), ("0", "4"))
    assert found.layers == expected
    total = torch.zeros(())
    for name, layer in bayesify.variational_layers(model):
        mean, std = layer.weight.detach(), layer.weight_std.detach()
        fitted = name in expected
        assert ("weight_basis" in dict(layer.named_buffers())) == fitted
        assert not fitted or std.max() <= found.precision**-0.5 * 1.0001
        axes = layer.weight_basis if fitted else torch.eye(mean.shape[1])
        prior = found.precision**-0.5 if fitted else 5 / mean.shape[1] ** 0.5
        for k in range(len(mean)):
            q = torch.distributions.MultivariateNormal(mean[k], axes @ std[k].square().diag() @ axes.T)
            p = torch.distributions.MultivariateNormal(0 * mean[k], prior**2 * torch.eye(mean.shape[1]))
            total = total + torch.distributions.kl_divergence(q, p)
    torch.testing.assert_close(model.kl().detach(), total, rtol=1e-3, atol=1e-2)


def test_the_network_before_the_last_layer_runs_once_for_all_precisions(monkeypatch: pytest.MonkeyPatch) -> None:
    """It runs for the curvature, the mean, the features and one relative std, and not for each of 25 precisions."""
    monkeypatch.setattr("bayesify.uncertainty.fit_std.RELATIVE", (0.0,))
    model, data = network()
    whole, calls = copy.deepcopy(model), []
    model[0].register_forward_hook(lambda *_: calls.append(1))
    found = bayesify.fit_std(model, data, task="classification", samples=4)
    assert len(calls) < 25
    monkeypatch.setattr("bayesify.uncertainty.fit_std._on_features", lambda model, layer, judge: (model, judge))
    assert abs(bayesify.fit_std(whole, data, task="classification", samples=4).nll - found.nll) < 0.05


def test_layers_that_cannot_be_fitted_are_refused() -> None:
    model, data = network()
    for wrong, reason in (("5", "picks no"), ("1+", "looks like|picks no"), ("re:(", "regular expression")):
        with pytest.raises(UsageError, match=reason):
            bayesify.fit_std(model, data, task="classification", layers=wrong)
    model = bayesify.convert(nn.Sequential(nn.Linear(8, 3)), {"posterior": {"parameterization": "multiplicative"}})
    with pytest.raises(UsageError, match="multiplicative"):
        bayesify.fit_std(model, data, task="classification", layers="**")


def test_what_has_no_last_linear_is_refused() -> None:
    x, labels = torch.randn(20, 8), torch.randint(3, (20,))
    softmax = converted("flipout", nn.Linear(8, 3), nn.LogSoftmax(-1))
    with pytest.raises(UsageError, match="is not the model's"):
        bayesify.fit_std(softmax, [(x, labels)], task="classification")
    conv = converted("flipout", nn.Conv1d(1, 3, 8), nn.Flatten())
    with pytest.raises(UsageError, match="no variational Linear"):
        bayesify.fit_std(conv, [(x.unsqueeze(1), labels)], task="classification")


def test_a_log_variance_drawn_far_out_has_a_likelihood() -> None:
    """Where no row of the data reaches a weight, its std is that of the prior: exp of such a draw is 0 or infinite."""
    model, data = converted("flipout", nn.Linear(2, 2)), [(torch.randn(20, 2), torch.randn(20, 1))]
    bayesify.set_posterior_std(model, 200.0)
    found = bayesify.calibrate(model, data, task="regression", noise="halves")
    assert all(math.isfinite(score.nll) for score in found.scores)
    bayesify.set_posterior_std(model, 200.0)
    assert bayesify.predict(model, data[0][0], task="regression", noise="halves").total.isfinite().all()
