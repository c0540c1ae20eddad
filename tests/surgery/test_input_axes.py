"""`posterior: {basis: inputs}`: a posterior that is diagonal along the axes of a layer's inputs, for training."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, kl_divergence

import bayesify
from bayesify.errors import UsageError
from tests.support import METHODS, judge_mean

POLICY: dict[str, Any] = {"posterior": {"basis": "inputs"}}


def data() -> Tensor:
    return torch.randn(200, 6) @ torch.randn(6, 6) * torch.logspace(-1, 1, 6)


def converted(method: str = "flipout", x: Tensor | None = None, **policy: Any) -> tuple[Any, Tensor]:
    x = data() if x is None else x
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).eval()
    return bayesify.convert(model, {"method": method, **POLICY, **policy}, example_inputs=x), x


@pytest.mark.parametrize("method", METHODS)
def test_the_axes_are_those_of_the_inputs_and_the_noise_lies_along_them(method: str) -> None:
    """VᵀΣφφᵀV is diagonal; Var y_k = Σⱼ (xV)ⱼ² std_kj², for passes and for one held draw."""
    model, x = converted(method)
    with torch.no_grad(), bayesify.posterior_mean(model):
        hidden = model[1](model[0](x))
    for layer, inputs in ((model[0], x), (model[2], hidden)):
        turned = inputs.double() @ layer.weight_basis.double()
        gram = turned.T @ turned
        torch.testing.assert_close(gram, gram.diag().diag(), rtol=0, atol=1e-4 * float(gram.abs().max()))
        std = layer.weight_std.detach()
        start = (layer.weight @ layer.weight_basis).detach().abs()
        torch.testing.assert_close(std, 0.2 * start.maximum(0.1 * start.square().mean().sqrt()), rtol=1e-3, atol=1e-6)
        with torch.no_grad():
            few = inputs[:5]
            center, variance = layer.bias + few @ layer.weight.T, (few @ layer.weight_basis).square() @ std.square().T
            passes = torch.stack([layer(few) for _ in range(4000)])
            judge_mean("passes", (passes - center).square() / variance, 1.0)


def test_training_has_the_kl_of_the_two_normals_and_gradients_to_the_stds() -> None:
    model, x = converted(prior={"mean": "pretrained", "std": 0.7})
    start = {name: layer.weight.detach().clone() for name, layer in bayesify.variational_layers(model)}
    optimizer = torch.optim.Adam(bayesify.param_groups(model, lr=1e-2))
    before = [layer.weight_std.detach().clone() for _, layer in bayesify.variational_layers(model)]
    for _ in range(5):
        optimizer.zero_grad()
        (F.mse_loss(model(x), x[:, :3]) + model.kl() / len(x)).backward()
        optimizer.step()
    total = torch.zeros(())
    for (name, layer), std in zip(bayesify.variational_layers(model), before, strict=True):
        assert not torch.isclose(layer.weight_std, std).any()
        for k in range(len(std)):
            covariance = (layer.weight_basis * layer.weight_std[k].square()) @ layer.weight_basis.T
            prior = MultivariateNormal(start[name][k], 0.49 * torch.eye(std.shape[1]))
            total = total + kl_divergence(MultivariateNormal(layer.weight[k], covariance), prior)
    torch.testing.assert_close(model.kl(), total, rtol=1e-3, atol=1e-3)


def test_files_copies_and_a_new_start_keep_the_axes(tmp_path: Path) -> None:
    model, _ = converted()
    basis, std = model[0].weight_basis.clone(), model[0].weight_std.detach().clone()
    bayesify.save(model, tmp_path / "model.pt")
    for other in (copy.deepcopy(model), bayesify.load(tmp_path / "model.pt")):
        bayesify.set_posterior_std(other, 0.5)
        bayesify.reset_posterior(other)
        assert torch.equal(other[0].weight_basis, basis)
        torch.testing.assert_close(other[0].weight_std, std)
        assert "inputs' axes" in repr(other[0])
    assert "weight_basis" not in dict(bayesify.revert(model)[0].named_buffers())


def test_what_has_no_such_axes_is_told() -> None:
    model = nn.Sequential(nn.Conv1d(1, 2, 3), nn.Flatten(), nn.Linear(8, 3))
    made = bayesify.plan(model, POLICY)
    assert "is for Linear layers" in made.rows[0].notes[0]
    assert [row.settings.posterior.basis for row in made.rows if row.settings] == ["weights", "inputs"]
    with pytest.raises(UsageError, match="example_inputs="):
        bayesify.convert(model, POLICY)
    noisy = bayesify.convert(model, POLICY, example_inputs=torch.randn(9, 1, 6))
    assert hasattr(noisy[2], "weight_basis")
    with pytest.raises(UsageError, match="one std for all its weights"):
        converted(prior={"mean": "zero", "std": {"relative": 0.1}})

    class Aside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.left = nn.Linear(6, 2), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Any:
            return self.used(x)

    with pytest.raises(UsageError, match="do not reach layer 'left'"):
        bayesify.convert(Aside(), POLICY, example_inputs=data())


def test_a_shared_weight_has_the_axes_of_all_its_inputs() -> None:
    model: Any = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Tanh(), nn.Linear(4, 4, bias=False))
    model[2].weight = model[0].weight
    x = torch.randn(50, 4)
    noisy = bayesify.convert(model, POLICY, example_inputs=x)
    assert torch.equal(noisy[0].weight_basis, noisy[2].weight_basis)
    rows = torch.cat([x, torch.tanh(x @ model[0].weight.T)]).detach()
    turned = rows @ noisy[0].weight_basis
    gram = turned.T @ turned
    torch.testing.assert_close(gram, gram.diag().diag(), rtol=0, atol=1e-4 * float(gram.abs().max()))
