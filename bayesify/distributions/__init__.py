"""Posteriors q(w), priors p(w) and the KL divergence between them.

Imported at their first use (PEP 562): a policy reads `Scale` without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .posterior import Posterior
    from .prior import LogUniform, Normal, ScaleMixture
    from .scale import Scale

__all__ = ["LogUniform", "Normal", "Posterior", "Scale", "ScaleMixture"]

_DEFINED_IN = {
    "LogUniform": "prior",
    "Normal": "prior",
    "Posterior": "posterior",
    "Scale": "scale",
    "ScaleMixture": "prior",
}


def __getattr__(name: str) -> Any:
    if name not in _DEFINED_IN:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = getattr(import_module(f".{_DEFINED_IN[name]}", __name__), name)
    return globals()[name]
