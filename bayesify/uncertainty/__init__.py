"""What a converted model is asked: predictions with their uncertainty, held draws, and the KL in training."""

from .calibration import Calibration, Scores
from .conformal import Conformal

__all__ = ["Calibration", "Conformal", "Scores"]
