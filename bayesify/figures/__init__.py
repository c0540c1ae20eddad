"""Figures of a converted model, for notebooks, loggers and the HTML report: each function returns a matplotlib Figure.

    bayesify.figures.kl(model)                        # or of an Inspection
    bayesify.figures.reliability(prediction, labels)  # or of an Inspection that had data

matplotlib comes with `pip install "bayesify[report]"`. No figure is shown or closed: `figure.savefig(path)` writes it.
"""

from .of_posteriors import histogram, kl, noise, prior_ratio, pruning
from .of_predictions import coverage, reliability, risk_coverage, samples, separation

__all__ = [
    "coverage",
    "histogram",
    "kl",
    "noise",
    "prior_ratio",
    "pruning",
    "reliability",
    "risk_coverage",
    "samples",
    "separation",
]
