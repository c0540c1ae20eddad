"""Turn any trained PyTorch model into a variational Bayesian one, without touching its code.

    model = bayesify.convert(model, "flipout")
    loss = nll + model.kl() / n_train
"""

from typing import Any

import torch

from . import functional, nn
from .analysis.registration import register
from .distributions.posterior import Posterior, Scale
from .distributions.prior import LogUniform, Normal, ScaleMixture
from .errors import BayesifyError
from .files.load_model import load_model as load
from .files.save import save
from .nn.hooks import forget_examples, keep_unfused, mark_reached, tell_examples
from .nn.kl import Ledger, variational_layers
from .nn.kl import total_kl as kl
from .nn.posterior_mean import posterior_mean
from .nn.posterior_tensors import LazyBuffer
from .nn.registry import plain_classes, variant
from .nn.settings import Settings
from .planning.plan import Plan
from .planning.planner import plan
from .policy.policy import Policy
from .programs.program import rebuilt
from .surgery.convert import convert, flipout, lrt, revert
from .surgery.optimizer import extend_optimizer, param_groups
from .surgery.reset import load_weights, reset_posterior, set_posterior_std
from .uncertainty.draws import draw, sample
from .uncertainty.kl_in_training import annealing, attach_kl, elbo
from .uncertainty.predict import predict
from .uncertainty.prediction import Prediction
from .uncertainty.sequence import SequencePrediction, sequence

__version__ = "0.1.0"

__all__ = [
    "BayesifyError",
    "Plan",
    "Policy",
    "Prediction",
    "SequencePrediction",
    "annealing",
    "attach_kl",
    "convert",
    "draw",
    "elbo",
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
    "predict",
    "register",
    "reset_posterior",
    "revert",
    "sample",
    "save",
    "sequence",
    "set_posterior_std",
    "variational_layers",
]

# A converted model holds these beside its plain layers: torch.load(..., weights_only=True) may build them.
_VARIANTS: list[Any] = [variant(cls, method) for cls in plain_classes() for method in ("flipout", "lrt")]
_SETTINGS = [Settings, Posterior, Scale, Normal, LogUniform, ScaleMixture]
_HOOKS: list[Any] = [mark_reached, keep_unfused, tell_examples, forget_examples]
torch.serialization.add_safe_globals([*_VARIANTS, *_SETTINGS, *_HOOKS, Ledger, LazyBuffer, rebuilt])
