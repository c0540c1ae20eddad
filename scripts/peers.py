"""Other libraries' variational models of a plain one, to measure beside ours: those that are installed."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

from torch import Tensor, nn

Model = tuple[nn.Module, Callable[[], Tensor]]  # and its KL


def peers_of(plain: nn.Module) -> Iterator[tuple[str, Model]]:
    """(name, model with its KL) of each peer that can convert the model: bayesian-torch and torchbnn."""
    if find_spec("bayesian_torch"):
        yield "bayesian-torch flipout", _bayesian_torch(plain, "Flipout")
        yield "bayesian-torch reparam.", _bayesian_torch(plain, "Reparameterization")
    if find_spec("torchbnn"):
        yield "torchbnn", _torchbnn(plain)


def _bayesian_torch(plain: nn.Module, kind: str) -> Model:
    from bayesian_torch.models.dnn_to_bnn import dnn_to_bnn, get_kl_loss

    parameters = {
        "prior_mu": 0.0, "prior_sigma": 1.0, "posterior_mu_init": 0.0, "posterior_rho_init": -5.0,
        "type": kind, "moped_enable": False, "moped_delta": 0.5,
    }  # fmt: skip
    model = nn.Sequential(copy.deepcopy(plain))  # it replaces children, and a layer alone is none
    dnn_to_bnn(model, parameters)
    return model, lambda: get_kl_loss(model)


def _torchbnn(plain: nn.Module) -> Model:
    import torchbnn

    model, loss = nn.Sequential(copy.deepcopy(plain)), torchbnn.BKLLoss(reduction="sum", last_layer_only=False)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            biased = getattr(child, "bias", None) is not None
            given: dict[str, Any] = {"prior_mu": 0.0, "prior_sigma": 0.1, "bias": biased}
            if isinstance(child, nn.Linear):
                made = torchbnn.BayesLinear(in_features=child.in_features, out_features=child.out_features, **given)
            elif isinstance(child, nn.Conv2d):
                for key in ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups"):
                    given[key] = getattr(child, key)
                made = torchbnn.BayesConv2d(**given)
            else:
                continue
            setattr(parent, name, made)
    return model, lambda: loss(model)
