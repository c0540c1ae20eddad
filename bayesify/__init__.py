"""Turn any trained PyTorch model into a variational Bayesian one, without touching its code.

    model = bayesify.convert(model, "flipout")
    loss = nll + model.kl() / n_train

A public name is imported at its first use (PEP 562), so that the command line can answer without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .errors import BayesifyError
from .safe_globals import register_once_torch_is_imported

if TYPE_CHECKING:
    from . import figures, functional, nn
    from .analysis.registration import register
    from .exporting.export import export
    from .files.load_model import load_model as load
    from .files.save import save
    from .nn.kl import total_kl as kl
    from .nn.kl import variational_layers
    from .nn.posterior_mean import posterior_mean
    from .planning.plan import Plan
    from .planning.planner import plan
    from .policy.policy import Policy
    from .surgery.convert import convert, flipout, lrt
    from .surgery.optimizer import extend_optimizer, param_groups
    from .surgery.reset import load_weights, reset_posterior, set_posterior_std
    from .surgery.revert import revert
    from .uncertainty.calibrate import calibrate
    from .uncertainty.calibration import Calibration
    from .uncertainty.draws import draw, sample
    from .uncertainty.fit_lora import FittedLora, fit_lora
    from .uncertainty.fit_std import FittedStd, fit_std
    from .uncertainty.inspect import Inspection, inspect
    from .uncertainty.kl_in_training import annealing, attach_kl, elbo
    from .uncertainty.predict import predict
    from .uncertainty.prediction import Prediction
    from .uncertainty.prune import prune
    from .uncertainty.pruned import Pruned
    from .uncertainty.sequence import SequencePrediction, sequence

__version__ = "0.1.0"

__all__ = [
    "BayesifyError",
    "Calibration",
    "FittedLora",
    "FittedStd",
    "Inspection",
    "Plan",
    "Policy",
    "Prediction",
    "Pruned",
    "SequencePrediction",
    "annealing",
    "attach_kl",
    "calibrate",
    "convert",
    "draw",
    "elbo",
    "export",
    "extend_optimizer",
    "figures",
    "fit_lora",
    "fit_std",
    "flipout",
    "functional",
    "inspect",
    "kl",
    "load",
    "load_weights",
    "lrt",
    "nn",
    "param_groups",
    "plan",
    "posterior_mean",
    "predict",
    "prune",
    "register",
    "reset_posterior",
    "revert",
    "sample",
    "save",
    "sequence",
    "set_posterior_std",
    "variational_layers",
]

# Where each of these is defined: its module, and its name there if that is another. The modules `nn` and `functional`
# need no entry; what settings are made of is there too, though it is not in `__all__`.
_DEFINED_IN = {
    "annealing": "uncertainty.kl_in_training",
    "attach_kl": "uncertainty.kl_in_training",
    "calibrate": "uncertainty.calibrate",
    "Calibration": "uncertainty.calibration",
    "convert": "surgery.convert",
    "draw": "uncertainty.draws",
    "elbo": "uncertainty.kl_in_training",
    "export": "exporting.export",
    "extend_optimizer": "surgery.optimizer",
    "FittedLora": "uncertainty.fit_lora",
    "FittedStd": "uncertainty.fit_std",
    "fit_lora": "uncertainty.fit_lora",
    "fit_std": "uncertainty.fit_std",
    "flipout": "surgery.convert",
    "inspect": "uncertainty.inspect",
    "Inspection": "uncertainty.inspect",
    "kl": "nn.kl:total_kl",
    "load": "files.load_model:load_model",
    "load_weights": "surgery.reset",
    "LogUniform": "distributions.prior",
    "lrt": "surgery.convert",
    "Normal": "distributions.prior",
    "param_groups": "surgery.optimizer",
    "Plan": "planning.plan",
    "plan": "planning.planner",
    "Policy": "policy.policy",
    "Posterior": "distributions.posterior",
    "posterior_mean": "nn.posterior_mean",
    "predict": "uncertainty.predict",
    "Prediction": "uncertainty.prediction",
    "prune": "uncertainty.prune",
    "Pruned": "uncertainty.pruned",
    "register": "analysis.registration",
    "reset_posterior": "surgery.reset",
    "revert": "surgery.revert",
    "sample": "uncertainty.draws",
    "save": "files.save",
    "Scale": "distributions.scale",
    "ScaleMixture": "distributions.prior",
    "sequence": "uncertainty.sequence",
    "SequencePrediction": "uncertainty.sequence",
    "set_posterior_std": "surgery.reset",
    "Settings": "nn.settings",
    "variational_layers": "nn.kl",
}


def __getattr__(name: str) -> Any:
    if name in _DEFINED_IN:
        module, _, other_name = _DEFINED_IN[name].partition(":")
        globals()[name] = getattr(import_module(f".{module}", __name__), other_name or name)
        return globals()[name]
    if not name.startswith("_"):
        try:
            return import_module(f".{name}", __name__)
        except ModuleNotFoundError as error:
            if error.name != f"{__name__}.{name}":
                raise
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


register_once_torch_is_imported()
