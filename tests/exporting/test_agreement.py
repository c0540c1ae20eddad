"""What tells one law of noise from another, on laws that are known."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from bayesify.errors import ExportMismatchError
from bayesify.exporting.agreement import FEW, MANY, check_equal, check_law


def law(mean: float = 0.0, std: float = 1.0, *, heavy: bool = False) -> Callable[[], list[Tensor]]:
    def run() -> list[Tensor]:
        numbers = torch.randn(8, 10)
        return [mean + std * (numbers * torch.rand(8, 1).rsqrt() if heavy else numbers)]

    return run


@pytest.mark.parametrize("runs", [FEW, MANY])
@pytest.mark.parametrize("heavy", [False, True])
def test_equal_laws_pass(heavy: bool, runs: int) -> None:
    torch.manual_seed(0)
    for _ in range(100):
        check_law(["y"], law(heavy=heavy), law(heavy=heavy), runs=runs, progress=False)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (law(mean=5.0), "mean of the file's output 'y'"),
        (law(std=0.4), "std of the file's output 'y'"),
        (law(std=0.0), "no noise: every run gives the same"),
    ],
)
@pytest.mark.parametrize("runs", [FEW, MANY])
def test_other_laws_do_not(other: Callable[[], list[Tensor]], words: str, runs: int) -> None:
    torch.manual_seed(0)
    with pytest.raises(ExportMismatchError, match=words):
        check_law(["y"], other, law(), runs=runs, progress=False)


def test_numbers_that_no_noise_reaches_may_round_in_another_way() -> None:
    torch.manual_seed(0)

    def law(rounding: float) -> Callable[[], list[Tensor]]:
        return lambda: [torch.cat([torch.randn(4), torch.tensor([1.0 + rounding])])]

    check_law(["y"], law(3e-7), law(0.0), progress=False)
    with pytest.raises(ExportMismatchError, match="mean of the file's output 'y'"):
        check_law(["y"], law(0.01), law(0.0), progress=False)


def test_a_model_without_noise_is_told() -> None:
    with pytest.raises(ExportMismatchError, match="the model has no noise"):
        check_law(["y"], law(), law(std=0.0), progress=False)


def test_equal_is_shape_dtype_and_numbers() -> None:
    y = torch.tensor([1.0, float("nan"), 1000.0])
    check_equal(["y"], [y + torch.tensor([0.05, 0, 0.5])], [y])
    for other in (y.double(), y[:2], y + torch.tensor([0.2, 0, 0])):
        with pytest.raises(ExportMismatchError, match="the file's output 'y'"):
            check_equal(["y"], [other], [y])
