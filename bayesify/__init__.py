"""Turn any trained PyTorch model into a variational Bayesian one, without touching its code.

    model = bayesify.convert(model, "flipout")
    loss = nll + model.kl() / n_train
"""

from typing import Any

import torch

from . import functional, nn
from .errors import BayesifyError
from .io import load, save
from .kl import Ledger, variational_layers
from .kl import total_kl as kl
from .nn.folding import forget_examples, tell_examples
from .nn.registry import plain_classes, register, variant
from .nn.settings import Settings
from .nn.state import LazyBuffer
from .nn.variational import mark_reached
from .optim import extend_optimizer, param_groups
from .plan import plan
from .policy import Policy
from .posterior import Posterior, Scale
from .prior import LogUniform, Normal, ScaleMixture
from .programs.state import rebuilt
from .rows import Plan
from .start import load_weights, reset_posterior, set_posterior_std
from .surgery import convert, flipout, keep_unfused, lrt, posterior_mean, revert

__version__ = "0.1.0"

__all__ = [
    "BayesifyError",
    "Plan",
    "Policy",
    "convert",
    "extend_optimizer",
    "flipout",
    "functional",
    "kl",
    "load",
    "load_weights",
    "lrt",
    "nn",
    "param_groups",
    "plan",
    "posterior_mean",
    "register",
    "reset_posterior",
    "revert",
    "save",
    "set_posterior_std",
    "variational_layers",
]

# A converted model holds these beside its plain layers: torch.load(..., weights_only=True) may build them.
_VARIANTS: list[Any] = [variant(cls, method) for cls in plain_classes() for method in ("flipout", "lrt")]
_SETTINGS = [Settings, Posterior, Scale, Normal, LogUniform, ScaleMixture]
_HOOKS: list[Any] = [mark_reached, keep_unfused, tell_examples, forget_examples]
torch.serialization.add_safe_globals([*_VARIANTS, *_SETTINGS, *_HOOKS, Ledger, LazyBuffer, rebuilt])
