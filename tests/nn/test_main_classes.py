"""A layer class of a script or a notebook goes to a worker that does not have it, as joblib, dask and ray send it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import bayesify

SENDS = """
import sys, copy, io, cloudpickle, torch, bayesify
from torch import nn

class Mine(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(3, 3))
    def forward(self, x):
        return x @ self.w

class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)

bayesify.register(Doubled)
model = bayesify.convert(nn.Sequential(Mine(), Doubled(3, 3)), sys.argv[1])
with open("model.pkl", "wb") as file:
    cloudpickle.dump(model, file)
again = copy.deepcopy(model)
assert type(again[0]) is type(model[0]) and torch.equal(again.kl(), model.kl())
torch.save(model, "model.pt")
with torch.serialization.safe_globals([Mine, Doubled, nn.Sequential]):
    again = torch.load("model.pt", weights_only=True)
assert type(again[0]) is type(model[0]) and torch.equal(again.kl(), model.kl())
"""
RECEIVES = """
import pickle, torch
with open("model.pkl", "rb") as file:
    model = pickle.load(file)
x = torch.ones(2, 3)
assert not torch.equal(model(x), model(x))
assert model.kl() > 0
"""


@pytest.mark.parametrize("method", ["flipout", "lrt"])
def test_a_class_of_main_is_sent_with_the_model(tmp_path: Path, method: str) -> None:
    pytest.importorskip("cloudpickle")
    environment = {**os.environ, "PYTHONPATH": str(Path(bayesify.__file__).parents[1])}
    for script in (SENDS, RECEIVES):
        command = [sys.executable, "-c", script, method]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
