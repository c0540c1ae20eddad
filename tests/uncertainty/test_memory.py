"""A head of 50,000 words: memory does not grow with the number of samples."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

MEASURED = """
import torch, bayesify
from torch import nn

torch.set_num_threads(1)
model = bayesify.convert(nn.Sequential(nn.Embedding(50_000, 16), nn.Linear(16, 50_000)), "flipout")
ids = torch.randint(50_000, (1, 128))


def peak_of(call):  # in bytes, of all that the process holds; what an import took before does not count
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    result = call()
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM")), result


with torch.no_grad():
    model(ids)
    one_pass, output = peak_of(lambda: model(ids))
size = output.nbytes
del output
prediction, _ = peak_of(lambda: bayesify.predict(model, ids, samples={samples}, task="classification", {options}))
peak = prediction - one_pass
print(peak / size)
"""


def outputs_at_peak(samples: int, options: str = "") -> float:
    """How much memory a prediction takes beyond one pass, in sizes of its output."""
    code = MEASURED.format(samples=samples, options=options)
    returned_at_once = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}  # else the peak is also that of fragments
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=returned_at_once)
    assert ran.returncode == 0, ran.stderr
    return float(ran.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux")
def test_a_large_head_in_bounded_memory() -> None:
    few, many = outputs_at_peak(3), outputs_at_peak(8)
    assert many < 6
    assert abs(many - few) < 1
    assert outputs_at_peak(8, "keep=True") > many + 3
