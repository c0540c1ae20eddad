"""Fixtures of the tests of the command line."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.cli.command_line import NETS


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a model and some code, and in it."""
    monkeypatch.chdir(tmp_path)
    torch.save(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), "mlp.pt")
    Path("clinets.py").write_text(NETS)
    yield tmp_path
    sys.modules.pop("clinets", None)
