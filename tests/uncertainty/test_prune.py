"""`prune`: which weights go, that their noise and KL go with them, and that the model lives on."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

import bayesify
from bayesify.errors import UsageError
from bayesify.uncertainty.prune import prune

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


def fitted(plain: nn.Module, **policy: Any) -> Any:
    """Converted, with stds that differ from weight to weight."""
    model = bayesify.convert(plain, {"method": "flipout", **policy})
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("_rho"):
                parameter.copy_(torch.randn_like(parameter) - 1)
    return model


def ratios(model: Any) -> dict[str, Tensor]:
    return {
        name: layer.mean_of("weight").detach().abs() / layer.weight_std.detach()
        for name, layer in bayesify.variational_layers(model)
    }


def test_the_weakest_of_the_whole_network_go() -> None:
    model = fitted(net())
    before = torch.cat([ratio.flatten() for ratio in ratios(model).values()])
    report = prune(model, fraction=0.25)
    gone = torch.cat([layer.weight.flatten() == 0 for _, layer in bayesify.variational_layers(model)])
    assert int(gone.sum()) == report.pruned == 14 == round(0.25 * report.weights)
    assert before[gone].max() <= report.snr <= before[~gone].min()


def test_a_threshold() -> None:
    model = fitted(net())
    expected = {name: ratio < 0.7 for name, ratio in ratios(model).items()}
    report = prune(model, snr=0.7)
    for name, layer in bayesify.variational_layers(model):
        assert torch.equal(layer.weight == 0, expected[name])
    assert report.pruned == sum(int(gone.sum()) for gone in expected.values())
    assert f"Pruned {report.pruned} of 56 weights" in repr(report)


def test_to_prune_again_goes_on_from_there() -> None:
    once = fitted(net())
    twice = copy.deepcopy(once)
    prune(once, fraction=0.6)
    prune(twice, fraction=0.3)
    prune(twice, fraction=0.6)
    for (_, one), (_, other) in zip(bayesify.variational_layers(once), bayesify.variational_layers(twice), strict=True):
        assert torch.equal(one.weight == 0, other.weight == 0)
        assert torch.equal(one.weight_mask, other.weight_mask)
    assert torch.equal(once.kl(), twice.kl())


KINDS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(4, 3),
    "conv": lambda: nn.Conv1d(3, 3, 3, bias=False),
    "transposed": lambda: nn.ConvTranspose1d(3, 2, 2, bias=False),
    "lstm": lambda: nn.LSTM(4, 3, batch_first=True, bidirectional=True, num_layers=2),
    "gru": lambda: nn.GRU(4, 3),
    "cell": lambda: nn.RNNCell(4, 3),
    "attention": lambda: nn.MultiheadAttention(4, 2, batch_first=True),
}


def call(model: Any) -> Tensor:
    x = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(2))
    if isinstance(model, nn.MultiheadAttention):
        return model(x, x, x)[0]
    if isinstance(model, nn.RNNCell):
        return model(x[0])
    output = model(x)
    return output[0] if isinstance(output, tuple) else output


@pytest.mark.parametrize("method", ["flipout", "lrt"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_pruned_has_no_noise_no_kl_and_no_gradient(kind: str, method: str) -> None:
    model = fitted(KINDS[kind](), method=method)
    kl = model.kl()
    report = prune(model, fraction=0.5)
    assert report.pruned == report.weights // 2 or report.pruned == round(report.weights / 2)
    assert model.kl() < kl
    (call(model).square().sum() + model.kl()).backward()
    for row in report.rows:
        owner, _, name = row.name.rpartition(".")
        layer = model.get_submodule(owner)
        gone = getattr(layer, f"{name}_mask") == 0
        assert int(gone.sum()) == row.pruned
        assert layer.std_of(name)[gone].abs().sum() == 0 == layer.mean_of(name)[gone].abs().sum()
        for parameter in (f"{name}_orig", f"{name}_rho"):
            gradient = layer._parameters[parameter].grad
            assert gradient[gone].abs().sum() == 0 < gradient[~gone].abs().sum()


@pytest.mark.parametrize("kind", KINDS)
def test_all_weights_zero_leave_no_noise(kind: str) -> None:
    model = fitted(KINDS[kind]())
    report = prune(model, snr=1e9)
    assert report.pruned == report.weights
    if not report.skipped:
        assert torch.equal(call(model), call(model))
        assert model.kl() == 0


@pytest.mark.parametrize("kind", KINDS)
def test_save_load_copy_and_revert(kind: str, tmp_path: Any) -> None:
    model = fitted(KINDS[kind]()).eval()
    prune(model, fraction=0.5)
    copied = copy.deepcopy(model)  # torch's pruned modules cannot be copied after a forward with gradients
    with bayesify.posterior_mean(model):
        expected = call(model)
    for twin in (copied, saved_and_opened(model, tmp_path / "model.pt")):
        assert torch.equal(twin.kl(), model.kl())
        with bayesify.posterior_mean(twin):
            assert torch.equal(call(twin), expected)
    plain = bayesify.revert(model)
    assert type(plain) is type(KINDS[kind]())
    assert torch.allclose(call(plain), expected, atol=1e-6)
    for name in [name for name, _ in plain.named_buffers() if name.endswith("_mask") and "." not in name]:
        torch_prune.remove(plain, name.removesuffix("_mask"))
    assert torch.allclose(call(plain), expected, atol=1e-6)
    assert sum(int((weight == 0).sum()) for name, weight in plain.named_parameters() if "weight" in name) > 5
    drawn = bayesify.revert(model, "sample")
    assert not torch.equal(call(drawn), expected)


def saved_and_opened(model: nn.Module, path: Any) -> Any:
    bayesify.save(model, path)
    return bayesify.load(path)


def test_an_optimizer_that_was_there_goes_on() -> None:
    model = fitted(net())
    optimizer = torch.optim.Adam(bayesify.param_groups(model, lr=1e-2))
    prune(model, fraction=0.5)
    before = model[0].weight.detach().clone()
    for _ in range(3):
        optimizer.zero_grad()
        (model(X).square().mean() + model.kl()).backward()
        optimizer.step()
    model(X)
    after = model[0].weight.detach()
    assert torch.equal(after == 0, before == 0)
    assert not torch.equal(after, before)


def test_channels_go_whole() -> None:
    model = fitted(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ConvTranspose2d(8, 6, 3), nn.Conv2d(6, 4, 3, groups=2)))
    scores = [
        (layer.weight / layer.weight_std).square().mean([at for at in range(4) if at != dim]).sqrt()
        for layer, dim in ((model[0], 0), (model[1], 1), (model[2], 0))
    ]
    report = bayesify.prune(model, snr=float(scores[1].detach().median()), by="channel")
    for layer, score, dim in zip(model, scores, (0, 1, 0), strict=True):
        gone = (layer.weight == 0).movedim(dim, 0).flatten(1)
        assert torch.equal(gone.all(1), score < report.snr)
        assert torch.equal(gone.all(1), gone.any(1))


def test_channels_that_stay_keep_what_was_pruned_before() -> None:
    model = fitted(nn.Sequential(nn.Linear(8, 8)))
    prune(model, fraction=0.25)
    gone = model[0].weight == 0
    report = prune(model, snr=1e-9, by="channel")
    assert torch.equal(model[0].weight == 0, gone)
    assert report.pruned == int(gone.sum()) == 16


def test_a_fraction_of_channels() -> None:
    model = fitted(nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 16)))
    report = prune(model, fraction=0.5, by="channel")
    assert 128 - 16 < report.pruned <= 128
    gone = [(layer.weight == 0) for _, layer in bayesify.variational_layers(model)]
    assert all(torch.equal(own.all(1), own.any(1)) for own in gone)


def test_what_it_cost() -> None:
    torch.manual_seed(0)
    labels = torch.randint(3, (64,))
    x = F.one_hot(labels, 4).float() + 0.1 * torch.randn(64, 4)
    model = bayesify.convert(nn.Sequential(nn.Linear(4, 3)))
    with torch.no_grad():
        model[0].weight.copy_(10 * torch.eye(3, 4))
        model[0].bias.zero_()
    signal = torch.eye(3, 4).bool()
    bayesify.set_posterior_std(model, {"0.weight": torch.where(signal, 0.1, torch.linspace(0.1, 0.2, 12).view(3, 4))})
    report = prune(model, snr=1.0, loader=[(x, labels)], task="classification")
    assert torch.equal(model[0].weight != 0, signal)
    assert report.before is not None and report.after is not None  # noqa: PT018
    assert report.before.accuracy == report.after.accuracy == 1.0
    with bayesify.posterior_mean(model):
        logits = model(x)
    assert report.after.nll == pytest.approx(F.cross_entropy(logits, labels).item(), abs=0.02)
    worse = prune(model, snr=1e6, loader=[(x, labels)], task="classification")
    assert worse.after is not None
    assert worse.after.nll == pytest.approx(float(torch.tensor(3.0).log()))  # nothing is left but equal logits
    assert "NLL" in repr(worse)
    assert worse.to_dict()["after"]["nll"] == worse.after.nll


def test_the_cost_in_regression_with_the_task_of_the_calibration() -> None:
    model = fitted(nn.Sequential(nn.Linear(4, 1)))
    data = [(X, X[:, :1])]
    with pytest.raises(UsageError, match="targets need a task"):
        prune(model, snr=0.1, loader=data)
    bayesify.calibrate(model, data, task="regression", samples=4)
    report = prune(model, snr=0.1, loader=data)
    assert report.before is not None
    assert report.before.rmse is not None
    assert "calibrate it anew" in repr(report)
