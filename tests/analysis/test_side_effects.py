"""Forwards of the user's that are run to be looked at leave the random generators alone."""

from __future__ import annotations

import random
import threading

import numpy as np
import torch

from bayesify.analysis.side_effects import same_randomness


def numbers() -> tuple[float, float, float]:
    return torch.rand(()).item(), random.random(), np.random.rand()


def test_what_is_drawn_inside_is_drawn_again() -> None:
    with same_randomness():
        inside = numbers()
    assert numbers() == inside


def test_no_generator_goes_back_while_other_threads_may_draw() -> None:
    done = threading.Event()
    other = threading.Thread(target=done.wait)
    other.start()
    try:
        with same_randomness():
            inside = numbers()
        assert not set(numbers()) & set(inside)
    finally:
        done.set()
        other.join()


def test_nor_where_another_one_started_meanwhile() -> None:
    done = threading.Event()
    other = threading.Thread(target=done.wait)
    try:
        with same_randomness():
            inside = numbers()
            other.start()
        assert not set(numbers()) & set(inside)
    finally:
        done.set()
        other.join()
