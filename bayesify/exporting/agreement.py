"""Whether a file computes what the model computes: number by number, or in law where noise is drawn in both."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..errors import ExportMismatchError
from ..report.progress import progressed

# How often the file and the model run where noise is drawn, and how many standard errors are too many then: by
# Student's t one number is so far off by chance once in 1e12.
FEW, MANY = 16, 64
_FAR = {FEW: 12.0, MANY: 8.0}
_RELATIVE, _ABSOLUTE = 1e-3, 1e-4  # between runtimes, whose sums run in other orders
_ROUNDING = 1e-5  # of the largest number: less noise than that is measured by it

Outputs = Callable[[], list[Tensor]]


def check_equal(names: Sequence[str], of_file: list[Tensor], of_model: list[Tensor]) -> None:
    """Refuse outputs that are not the model's.

    Raises:
        ExportMismatchError: naming the output, and how far it is off.
    """
    for name, found, expected in zip(names, of_file, of_model, strict=True):
        if found.shape != expected.shape or found.dtype != expected.dtype:
            given = f"{tuple(found.shape)} of {found.dtype}, and the model {tuple(expected.shape)} of {expected.dtype}"
            raise ExportMismatchError(f"the file's output {name!r} is {given}")
        found, expected = found.double(), expected.double()
        largest = float(torch.where(expected.isfinite(), expected.abs(), 0).max()) if expected.numel() else 0.0
        if not torch.allclose(found, expected, _RELATIVE, _ABSOLUTE * max(largest, 1e-6), equal_nan=True):
            off = float((found - expected).abs().nan_to_num(torch.inf).max())
            raise ExportMismatchError(f"the file's output {name!r} is off by {off:.3g}, at values up to {largest:.3g}")


def check_law(
    names: Sequence[str], of_file: Outputs, of_model: Outputs, *, runs: int = MANY, progress: bool | None = None
) -> None:
    """Refuse noise that is another: two runs alike, other means, or another spread around them.

    Means are compared number by number; the spread by each run's mean squared deviation from the means, all numbers of
    an output measured by their own std.

    Args:
        runs: `FEW` or `MANY`.

    Raises:
        ExportMismatchError: naming the output, and in what it differs.
    """
    repeated = progressed(range(runs), "Running the file beside the model", progress)
    both = [(of_file(), of_model()) for _ in repeated]
    found, expected = ([run[side] for run in both] for side in (0, 1))
    fixed = [all(torch.equal(run[at], expected[0][at]) for run in expected) for at in range(len(names))]
    if all(fixed):
        raise ExportMismatchError("the model has no noise in any output: its stds are zero, or nothing reaches it")
    for at, name in enumerate(names):
        if fixed[at] or not expected[0][at].is_floating_point():
            check_equal([name], [found[0][at]], [expected[0][at]])
            continue
        if all(torch.equal(run[at], found[0][at]) for run in found):
            raise ExportMismatchError(f"the file's output {name!r} has no noise: every run gives the same")
        _compare(name, *(torch.stack([run[at].double().flatten() for run in side]) for side in (found, expected)))


def _compare(name: str, found: Tensor, expected: Tensor) -> None:
    """Both (runs, numbers)."""
    if found.shape != expected.shape:
        raise ExportMismatchError(f"the file's output {name!r} has {found.shape[1]} numbers, not {expected.shape[1]}")
    runs, std = len(found), ((found.var(0) + expected.var(0)) / 2).sqrt()
    scale = std.clamp_min(_ROUNDING * float(expected.abs().max()) + 1e-300)  # runtimes round in other ways
    off = float(((found.mean(0) - expected.mean(0)) / scale).abs().max()) / (2 / runs) ** 0.5
    if off > _FAR[runs]:
        raise ExportMismatchError(f"the mean of the file's output {name!r} is {off:.1f} standard errors off")
    one, other = (((side - side.mean(0)) / scale).square().mean(1) for side in (found, expected))
    error = ((one.var() + other.var()) / runs).sqrt()
    apart = float((one.mean() - other.mean()) / error)
    if abs(apart) > _FAR[runs]:
        ratio = float((one.mean() / other.mean()).sqrt())
        raise ExportMismatchError(
            f"the std of the file's output {name!r} is {ratio:.2f} times the model's, {apart:+.1f} standard errors off"
        )
