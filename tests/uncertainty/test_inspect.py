"""`inspect`: each number against its definition, and each finding on a model that has it and on one that has not."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

import bayesify
from bayesify.errors import NotVariationalError, UninitializedLayerError, UsageError
from bayesify.findings import EDGES, LEVELS, SNR_LEVELS
from bayesify.uncertainty.posterior_states import quantiles

LABELS = torch.arange(60) % 3
X = F.one_hot(LABELS, 4).float() + 0.3 * torch.randn(60, 4, generator=torch.Generator().manual_seed(3))
DATA = [(X[:40], LABELS[:40]), (X[40:], LABELS[40:])]


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))


def spread(model: Any) -> Any:
    """The model with stds that differ from weight to weight."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("_rho", "_log_alpha")):
                parameter += torch.randn_like(parameter)
    return model


def kinds(found: bayesify.Inspection) -> list[str]:
    return [finding.kind for finding in found.findings]


@pytest.mark.parametrize("prior", [{"std": 0.7, "mean": 0.1}, {"mean": "pretrained", "std": 0.2}])
@pytest.mark.parametrize("parameterization", ["additive", "multiplicative"])
def test_each_number_is_what_it_says(prior: Any, parameterization: str) -> None:
    policy = {"method": "flipout", "prior": prior, "posterior": {"parameterization": parameterization}}
    model = spread(bayesify.convert(net(), policy))
    before = model[0].weight.detach().clone()
    with torch.no_grad():
        model[0].weight *= 1.5
    state = bayesify.inspect(model).posteriors[0]
    weight, std = model[0].weight.detach().double(), model[0].weight_std.detach().double()
    assert (state.name, state.type, state.weights, state.pruned) == ("0.weight", "FlipoutLinear", 64, 0)
    assert state.kl == pytest.approx(model[0].kl_divergence().item())
    ratio = weight.abs() / std
    assert state.snr == pytest.approx(ratio.flatten().quantile(torch.tensor(SNR_LEVELS).double()).tolist(), rel=1e-5)
    assert state.noise == pytest.approx([1 / value for value in reversed(
        ratio.flatten().quantile(torch.tensor(LEVELS).double()).tolist())], rel=1e-5)  # fmt: skip
    assert state.free == pytest.approx(float((weight.abs() <= std).double().mean()))
    prior_std, prior_mean = (0.2, before) if prior["mean"] == "pretrained" else (0.7, 0.1)
    expected = (std / prior_std).flatten().quantile(torch.tensor(LEVELS).double())
    assert state.prior_ratio == pytest.approx(expected.tolist(), rel=1e-5)
    from_prior = ((weight - prior_mean) / prior_std).square().mean().sqrt()
    assert state.from_prior == pytest.approx(float(from_prior), rel=1e-5)
    assert state.moved == (pytest.approx(0.5) if prior["mean"] == "pretrained" else None)
    edges = [10.0**edge for edge in EDGES]
    noise = (std / weight.abs()).clamp(edges[0], edges[-1] * 0.999).flatten()
    counts = torch.bucketize(noise, torch.tensor(edges).double(), right=True).bincount(minlength=25)[1:25]
    assert list(state.histogram) == counts.tolist()
    assert (state.mean_moved, state.scale_moved) == (True, True)


def test_a_prior_without_a_std_and_one_of_two_normals() -> None:
    policy = {"method": "flipout", "posterior": {"parameterization": "multiplicative"}}
    uniform = bayesify.convert(net(), {**policy, "prior": {"family": "log_uniform"}})
    assert bayesify.inspect(uniform).posteriors[0].prior_ratio is None
    mixture = bayesify.convert(net(), {"method": "flipout", "prior": {"family": "scale_mixture"}})
    bayesify.set_posterior_std(mixture, 0.5)
    state = bayesify.inspect(mixture).posteriors[0]
    assert state.prior_ratio == pytest.approx([0.5 / math.sqrt(0.5 + 0.5 * math.exp(-12))] * 5, rel=1e-4)
    assert state.from_prior is None


def test_pruned_weights_do_not_count() -> None:
    plain = net()
    torch_prune.l1_unstructured(plain[0], "weight", 0.25)  # type: ignore[no-untyped-call,index]
    state = bayesify.inspect(spread(bayesify.convert(plain))).posteriors[0]
    assert (state.weights, state.pruned) == (48, 16)
    assert sum(state.histogram) == 48
    assert min(state.snr) > 0


def test_a_posterior_in_other_axes_counts_by_the_std_of_its_weights() -> None:
    model: Any = bayesify.convert(net())
    bayesify.fit_std(model, DATA, task="classification", samples=2)
    layer, basis = model[2], model[2].weight_basis
    layer.set_std("weight", torch.rand(3, 16) + 0.01)
    variances = torch.stack([(basis @ row.square().diag() @ basis.T).diag() for row in layer.weight_std.detach()])
    ratio = (layer.weight.detach().abs() / variances.sqrt()).flatten().double()
    expected = ratio.quantile(torch.tensor(SNR_LEVELS).double()).tolist()
    assert bayesify.inspect(model).posteriors[1].snr == pytest.approx(expected, rel=1e-4)


def test_quantiles_of_few_and_of_many() -> None:
    assert quantiles(torch.tensor([3.0, 1.0]), (0.0, 0.5, 1.0)) == (1.0, 2.0, 3.0)
    assert quantiles(torch.empty(0), (0.5,)) == (0.0,)
    many = torch.rand(2**21 + 5)
    assert quantiles(many, (0.1, 0.5)) == pytest.approx((0.1, 0.5), abs=0.005)


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.idle = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x) if x.sum() > -1e9 else self.idle(x)


def test_a_layer_that_is_never_reached() -> None:
    model = spread(bayesify.convert(Branches(), {"method": "flipout", "rules": [{"targets": ["*"]}]}))
    assert [state.reached for state in bayesify.inspect(model).posteriors] == [None, None]
    found = bayesify.inspect(model, [X, X])
    assert [state.reached for state in found.posteriors] == [True, False]
    (finding,) = [finding for finding in found.findings if finding.kind == "unreached"]
    assert finding.posteriors == ("idle.weight",)
    assert "ignore" in finding.remedy
    model(X)
    assert [state.reached for state in bayesify.inspect(model).posteriors] == [True, False]
    model.kl.reset()
    bayesify.inspect(model, [X])
    assert float(model.kl(reached=True)) == 0  # the flags are those of the user's own passes


def test_what_conversion_set_and_what_the_optimizer_left() -> None:
    model = bayesify.convert(net())
    assert kinds(bayesify.inspect(model)) == ["start"]
    plain = net()
    optimizer = torch.optim.Adam(plain.parameters(), lr=1e-2)
    left: Any = bayesify.convert(plain, inplace=True)
    train(left, optimizer)
    (finding,) = bayesify.inspect(left).findings
    assert finding.kind == "optimizer"
    assert finding.posteriors == ("0.weight", "2.weight")
    assert "param_groups" in finding.remedy
    trained: Any = bayesify.convert(net())
    train(trained, torch.optim.Adam(bayesify.param_groups(trained, lr=1e-2)))
    assert kinds(bayesify.inspect(trained)) == []


def train(model: Any, optimizer: torch.optim.Optimizer, kl: float = 1 / 60, steps: int = 5) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        (F.cross_entropy(model(X), LABELS) + kl * model.kl()).backward()
        optimizer.step()


@pytest.mark.parametrize(("mean", "word"), [("pretrained", "calibrate"), (0.0, "n_train")])
def test_a_posterior_that_is_its_prior(mean: Any, word: str) -> None:
    model: Any = bayesify.convert(net(), {"method": "flipout", "prior": {"mean": mean, "std": 0.1}})
    train(model, torch.optim.Adam(bayesify.param_groups(model, lr=0.05)), kl=1.0, steps=300)
    found = bayesify.inspect(model)
    (finding,) = [finding for finding in found.findings if finding.kind == "prior"]
    assert finding.posteriors == ("0.weight", "2.weight")
    assert word in finding.remedy
    bayesify.set_posterior_std(model, {"0.weight": 0.02, "2.weight": 0.02})  # another constant, as calibrate fits one
    assert "prior" in kinds(bayesify.inspect(model))
    assert "prior" not in kinds(bayesify.inspect(spread(model)))


def test_noise_that_ruins_and_where_it_is() -> None:
    model: Any = bayesify.convert(net())
    train(model, torch.optim.Adam(bayesify.param_groups(model, lr=0.05)), steps=60)
    bayesify.set_posterior_std(model, 0.02)
    assert "ruins" not in kinds(bayesify.inspect(model, DATA, task="classification", samples=8))
    bayesify.set_posterior_std(model, {"2.weight": 20.0, "0.weight": 0.01})
    found = bayesify.inspect(model, DATA, task="classification", samples=8)
    (finding,) = [finding for finding in found.findings if finding.kind == "ruins"]
    assert finding.posteriors[0] == "2.weight"
    assert "noisy" in kinds(found)
    assert kinds(found)[0] == "ruins"


def test_numbers_that_are_not_finite_come_first() -> None:
    model: Any = bayesify.convert(net())
    with torch.no_grad():
        model[2].weight[0, 0] = math.nan
        model[0].weight_rho.fill_(math.inf)
    found = bayesify.inspect(model)
    assert kinds(found)[0] == "not finite"
    assert found.findings[0].posteriors == ("0.weight", "2.weight")
    repr(found)


def test_noise_that_fit_std_silenced_has_a_finite_kl_and_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bayesify.uncertainty.fit_std.RELATIVE", (0.0,))
    model: Any = bayesify.convert(net())
    assert bayesify.fit_std(model, DATA, task="classification", samples=2).relative == 0
    found = bayesify.inspect(model)
    assert "not finite" not in kinds(found)
    assert math.isfinite(found.kl)
    assert "0.weight" in repr(found)


def test_the_model_and_the_generators_are_left_alone() -> None:
    model: Any = spread(bayesify.convert(nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)))).train()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = bayesify.inspect(model, DATA, task="classification", samples=4, ood=X)
    assert torch.equal(torch.rand(3), expected)
    assert model.training
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    again = bayesify.inspect(model, DATA, task="classification", samples=4, ood=X)
    assert again.to_dict() == first.to_dict()


def test_at_most_sixty_numbers_for_each_posterior_and_json() -> None:
    found = bayesify.inspect(spread(bayesify.convert(net())), DATA, task="classification", samples=2)
    data = found.to_dict()
    text = json.dumps(list(data["posteriors"][0].values()))
    assert len([word for word in text.strip("[]").replace("[", "").replace("]", "").split(", ") if _number(word)]) <= 60
    assert data["kl"] == pytest.approx(sum(state["kl"] for state in data["posteriors"]))
    assert data["plain_parameters"] == 16 + 3
    json.dumps(data)


def _number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def test_the_expected_cost_of_pruning() -> None:
    model = spread(bayesify.convert(net()))
    ratios = torch.cat([
        (layer.weight / layer.weight_std).detach().abs().flatten() for _, layer in bayesify.variational_layers(model)
    ]).double().sort().values  # fmt: skip
    for point in bayesify.inspect(model).pruning[1:]:
        count = point.fraction * len(ratios)
        gone = ratios[: int(count)]
        assert point.snr == pytest.approx(float(ratios[math.ceil(count - 1e-9) - 1]), rel=0.02)
        expected = float(((gone.square() - 1) / 2).sum() + (count - int(count)) * (ratios[int(count)] ** 2 - 1) / 2)
        assert point.expected == pytest.approx(expected, rel=0.03, abs=0.3)


def test_the_measured_cost_is_that_of_prune() -> None:
    model = spread(bayesify.convert(net()))
    found = bayesify.inspect(model, DATA, task="classification", samples=4)
    measured = {point.fraction: point for point in found.pruning if point.nll is not None}
    assert list(measured) == [0.0, 0.25, 0.5, 0.75, 0.9]
    report = bayesify.prune(model, fraction=0.5, loader=DATA, task="classification", samples=4)
    assert report.after is not None
    assert measured[0.5].nll == pytest.approx(report.after.nll)
    assert measured[0.5].accuracy == report.after.accuracy


def test_the_task_of_the_calibration() -> None:
    model = spread(bayesify.convert(net()))
    bayesify.calibrate(model, DATA, task="classification", samples=4)
    found = bayesify.inspect(model, DATA, samples=4)
    assert found.quality is not None
    assert [way.name for way in found.quality.performances] == ["mean network", "sampled", "calibrated"]
    assert "uncalibrated" not in kinds(found)


def test_what_is_refused() -> None:
    with pytest.raises(NotVariationalError):
        bayesify.inspect(net())
    with pytest.raises(UninitializedLayerError, match="run one batch first"):
        bayesify.inspect(bayesify.convert(nn.Sequential(nn.LazyLinear(2))))
    with pytest.raises(UninitializedLayerError, match="meta device"), torch.device("meta"):
        bayesify.inspect(bayesify.convert(net()))
    with pytest.raises(UsageError, match="ood= is compared"):
        bayesify.inspect(bayesify.convert(net()), ood=X)
    with pytest.raises(UsageError, match="need class labels"):
        bayesify.inspect(bayesify.convert(net()), [(X, X)], task="classification")
