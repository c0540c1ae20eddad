"""Every test starts from the same random state, on one thread; and torchvision for those that want it."""

import importlib
import importlib.util
import pathlib
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch

LIBRARIES = []  # a library's operators are gone with it


@pytest.fixture(autouse=True)
def _reproducible() -> Iterator[None]:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_grad_enabled(True)  # a KeyboardInterrupt that a test sends may leave torch.no_grad() half way


@pytest.fixture(scope="session")
def vision() -> ModuleType:
    """torchvision's module."""
    if importlib.util.find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed")
    return load_torchvision()


def load_torchvision() -> ModuleType:
    """torchvision, also where its compiled operators don't fit the torch at hand: its models need their names only."""
    found = importlib.util.find_spec("torchvision")
    if found is None or found.origin is None:
        raise ModuleNotFoundError("torchvision is not installed")
    try:
        for library in pathlib.Path(found.origin).parent.glob("_C*.so"):
            torch.ops.load_library(library)
    except OSError:
        LIBRARIES.append(torch.library.Library("torchvision", "DEF"))
        for name in ("nms", "qnms"):
            LIBRARIES[-1].define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return importlib.import_module("torchvision")
