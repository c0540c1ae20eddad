"""The methods of `scripts/compare`: each takes a trained network, a fifth of its training again, and gives draws."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from compare_tasks import Data, Task
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import bayesify
from bayesify.uncertainty.likelihoods import class_log_likelihoods, mixture_nll, normal_log_likelihoods

DRAWS = 32
Draws = Callable[[Tensor], tuple[Tensor, float]]  # inputs → (draws, n, outputs), and what logits are divided by


def nll(kind: str, output: Tensor, target: Tensor) -> Tensor:
    """The mean negative log-likelihood."""
    if kind == "classification":
        return F.cross_entropy(output, target)
    mean, log_variance = output.chunk(2, -1)
    return F.gaussian_nll_loss(mean, target, log_variance.clamp(-12, 12).exp())


def mixed_nll(kind: str, outputs: Tensor, temperature: float, targets: Tensor) -> Tensor:
    """The same under the mixture over draws, (draws, n, outputs)."""
    if kind == "classification":
        return mixture_nll(class_log_likelihoods(outputs, targets, temperature)).mean()
    mean, log_variance = outputs.chunk(2, -1)
    return mixture_nll(normal_log_likelihoods(mean, log_variance.clamp(-12, 12).exp(), targets)).mean()


def train(task: Task, model: nn.Module, epochs: int, optimizer: Any, penalty: Any = None) -> nn.Module:
    """With `penalty()` nats for the whole data set."""
    inputs, targets = task.train
    model.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(inputs)).split(task.batch):
            loss = nll(task.kind, model(inputs[rows]), targets[rows])
            if penalty is not None:
                loss = loss + penalty() / len(inputs)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval()


def pretrained(task: Task, dropout: float = 0.0) -> nn.Module:
    """The network that all methods start from."""
    model = task.make(dropout)
    return train(task, model, task.epochs, torch.optim.Adam(model.parameters(), task.lr))


def drawn(model: nn.Module, draws: int = DRAWS, temperature: float = 1.0) -> Draws:
    """Passes of a noisy model."""
    return lambda inputs: (torch.stack([model(inputs) for _ in range(draws)]), temperature)


def plain(task: Task, model: nn.Module) -> Draws:
    return drawn(model, 1)


def plain_trained_on(task: Task, model: nn.Module, times: int = 1) -> Draws:
    model = copy.deepcopy(model)
    return drawn(train(task, model, times * task.epochs // 5, torch.optim.Adam(model.parameters(), task.lr)), 1)


def temperature(task: Task, model: nn.Module) -> Draws:
    """One number on validation data: a temperature, or a factor of the predicted variance."""
    return _scaled(task, drawn(model, 1))


def mc_dropout(task: Task, model: nn.Module) -> Draws:
    """Trained with dropout from the start, at the full budget (Gal & Ghahramani 2016)."""
    model = pretrained(task, 0.2)
    for module in model.modules():
        module.training = isinstance(module, nn.Dropout)
    return drawn(model)


def ensemble(task: Task, model: nn.Module) -> Draws:
    """Five networks, at five times the full budget (Lakshminarayanan et al. 2017)."""
    models = [model, *(pretrained(task) for _ in range(4))]
    return lambda inputs: (torch.stack([one(inputs) for one in models]), 1.0)


def laplace(task: Task, model: nn.Module) -> Draws | None:
    """Last-layer Laplace with the full generalized Gauss-Newton matrix (Daxberger et al. 2021), on classes only.

    The prior's precision is chosen on validation data, as the other methods' numbers are.
    """
    if task.kind != "classification":
        return None
    last = model[-1]  # type: ignore[index]
    body = nn.Sequential(*list(model.children())[:-1])
    with torch.no_grad():
        features = body(task.train[0])
        p = torch.softmax(last(features), -1)
        curvature = torch.diag_embed(p) - p.unsqueeze(-1) * p.unsqueeze(-2)
        hessian = torch.einsum("nab,nx,ny->axby", curvature, features, features).reshape([last.weight.numel()] * 2)
        values, vectors = torch.linalg.eigh(hessian)

    def draws(precision: float) -> Draws:
        noise = torch.randn(DRAWS, len(values)) * (values.clamp_min(0) + precision).rsqrt()
        weights = last.weight + (noise @ vectors.T).view(DRAWS, *last.weight.shape)
        return lambda x: (torch.einsum("nx,sax->sna", body(x), weights) + last.bias, 1.0)

    def loss(precision: float) -> float:
        outputs, labels = draws(precision)(task.validation[0])[0], task.validation[1]
        return float(F.nll_loss(torch.softmax(outputs, -1).mean(0).clamp_min(1e-30).log(), labels))

    with torch.no_grad():
        return draws(min(torch.logspace(-2, 4, 13).tolist(), key=loss))


def ivon(task: Task, model: nn.Module) -> Draws:
    """IVON (Shen et al. 2024) from the trained network.

    Each try is a fifth of the budget. Its rate and first curvature, which so few steps do not leave, are chosen on
    validation data.
    """
    tries = [_ivon(task, model, lr, curvature) for lr in (1e-3, 1e-2, 1e-1) for curvature in (0.1, 1.0, 10.0)]
    losses = [float(mixed_nll(task.kind, *draws(task.validation[0]), task.validation[1])) for draws in tries]
    return tries[min(range(len(tries)), key=lambda at: losses[at] if math.isfinite(losses[at]) else math.inf)]


def _ivon(task: Task, model: nn.Module, lr: float, curvature: float) -> Draws:
    from ivon import IVON

    model = copy.deepcopy(model).train()
    inputs, targets = task.train
    optimizer = IVON(model.parameters(), lr=lr, ess=len(inputs), weight_decay=1e-4, hess_init=curvature)
    for _ in range(task.epochs // 5):
        for rows in torch.randperm(len(inputs)).split(task.batch):
            with optimizer.sampled_params(train=True):
                optimizer.zero_grad()
                nll(task.kind, model(inputs[rows]), targets[rows]).backward()
            optimizer.step()
    model.eval()

    @torch.no_grad()
    def draws(x: Tensor) -> tuple[Tensor, float]:
        outputs = []
        for _ in range(DRAWS):
            with optimizer.sampled_params():
                outputs.append(model(x))
        return torch.stack(outputs), 1.0

    return draws


def moped(task: Task, model: nn.Module) -> Draws | None:
    """bayesian-torch's Flipout with MOPED, delta 0.1 (Krishnan et al. 2020); its converter fails on a Conv1d."""
    if any(isinstance(module, nn.Conv1d) for module in model.modules()):
        return None
    from bayesian_torch.models.dnn_to_bnn import dnn_to_bnn, get_kl_loss

    model = copy.deepcopy(model)
    options = {"prior_mu": 0.0, "prior_sigma": 1.0, "posterior_mu_init": 0.0, "posterior_rho_init": -3.0}
    dnn_to_bnn(model, {**options, "type": "Flipout", "moped_enable": True, "moped_delta": 0.1})
    optimizer = torch.optim.Adam(model.parameters(), task.lr)
    return drawn(train(task, model, task.epochs // 5, optimizer, lambda: get_kl_loss(model)))


def fine_tuned(task: Task, model: nn.Module, times: int = 1) -> Draws:
    """bayesify's recipe without its last line."""
    return drawn(_fine_tuned(task, model, times))


def calibrated(task: Task, model: nn.Module, times: int = 1) -> Draws:
    """bayesify's recipe."""
    return _calibrated(task, _fine_tuned(task, model, times))


def fit_std(task: Task, model: nn.Module) -> Draws:
    """No training at all."""
    model = bayesify.convert(model)
    options = {"noise": "halves"} if task.kind == "regression" else {}
    bayesify.fit_std(model, _loader(task.train), task=task.kind, validation=_loader(task.validation), **options)
    return _calibrated(task, model)


METHODS: dict[str, Callable[[Task, nn.Module], Draws | None]] = {
    "plain": plain,
    "plain, trained on": plain_trained_on,
    "plain, trained on ×5": lambda task, model: plain_trained_on(task, model, 5),
    "temperature": temperature,
    "MC dropout from scratch": mc_dropout,
    "ensemble of 5": ensemble,
    "last-layer Laplace": laplace,
    "IVON": ivon,
    "bayesian-torch MOPED": moped,
    "bayesify": fine_tuned,
    "bayesify + calibrate": calibrated,
    "bayesify ×5": lambda task, model: fine_tuned(task, model, 5),
    "bayesify ×5 + calibrate": lambda task, model: calibrated(task, model, 5),
    "bayesify fit_std + calibrate": fit_std,
}


def _fine_tuned(task: Task, model: nn.Module, times: int) -> Any:
    model = bayesify.convert(model, "flipout")
    optimizer = torch.optim.Adam(bayesify.param_groups(model, lr=task.lr))
    return train(task, model, times * task.epochs // 5, optimizer, lambda: bayesify.kl(model))


def _calibrated(task: Task, model: nn.Module) -> Draws:
    calibration = bayesify.calibrate(model, _loader(task.validation), task=task.kind)  # type: ignore[arg-type]
    return _with_factor(drawn(model, DRAWS, calibration.temperature), calibration.noise_factor)


def _scaled(task: Task, draws: Draws) -> Draws:
    inputs, targets = task.validation
    outputs = draws(inputs)[0].detach()
    factors = torch.logspace(-1.5, 1.5, 61).tolist()
    if task.kind == "classification":
        best = min(factors, key=lambda factor: float(nll(task.kind, outputs[0] / factor, targets)))
        return lambda x: (draws(x)[0], best)
    return _with_factor(draws, min(factors, key=lambda f: float(nll(task.kind, _times(outputs, f)[0], targets))))


def _with_factor(draws: Draws, factor: float) -> Draws:
    if factor == 1:
        return draws
    return lambda x: (_times(draws(x)[0], factor), 1.0)


def _times(outputs: Tensor, factor: float) -> Tensor:
    mean, log_variance = outputs.chunk(2, -1)
    return torch.cat([mean, log_variance + torch.tensor(factor).log()], -1)


def _loader(data: Data) -> Any:
    return DataLoader(TensorDataset(*data), 200)
