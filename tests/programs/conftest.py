"""Fixtures of the tests of programs."""

import pytest
import torch

from .exported import cases


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Every case as `<name>.pt2`."""
    written = tmp_path_factory.mktemp("programs")
    for name, case in cases().items():
        torch.export.save(case.exported(), written / f"{name}.pt2")
    return written
