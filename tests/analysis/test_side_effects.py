"""Forwards of the user's that are run to be looked at leave the random generators alone."""

from __future__ import annotations

import random

import numpy as np
import torch

from bayesify.analysis.side_effects import same_randomness


def numbers() -> tuple[float, float, float]:
    return torch.rand(()).item(), random.random(), np.random.rand()


def test_what_is_drawn_inside_is_drawn_again() -> None:
    with same_randomness():
        inside = numbers()
    assert numbers() == inside
