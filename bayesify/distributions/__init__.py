"""Posteriors q(w), priors p(w) and the KL divergence between them."""

from .posterior import Posterior
from .prior import LogUniform, Normal, ScaleMixture
from .scale import Scale

__all__ = ["LogUniform", "Normal", "Posterior", "Scale", "ScaleMixture"]
