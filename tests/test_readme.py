"""What the README says in Python runs as it stands there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

README = Path(__file__).parent.parent / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)


def ran(block: str, capsys: pytest.CaptureFixture[str]) -> tuple[dict[str, Any], str]:
    names: dict[str, Any] = {}
    exec(block, names)
    prediction = names["prediction"]
    assert prediction.total.allclose(prediction.aleatoric + prediction.epistemic)
    return names, capsys.readouterr().out


def test_the_first_session_runs(capsys: pytest.CaptureFixture[str]) -> None:
    names, told = ran(BLOCKS[0], capsys)
    assert "2 layers convert" in told
    assert names["prediction"].mean.shape == (256, 10)
    assert names["same"]
    assert type(names["plain"][0]).__name__ == "Linear"


def test_the_regression_runs(capsys: pytest.CaptureFixture[str]) -> None:
    names, told = ran(BLOCKS[1], capsys)
    assert "predicted noise variance" in told
    low, high = names["prediction"].interval(0.9)
    assert low.shape == (512, 1)
    assert 0.85 < ((low < names["y"]) & (names["y"] < high)).float().mean() < 0.95


def test_every_block_is_run() -> None:
    assert len(BLOCKS) == 2


def test_files_that_it_names_are_there() -> None:
    text = README.read_text()
    for name in re.findall(r"\]\(([\w/.-]+)\)", text) + re.findall(r"`?(scripts/\w+)", text):
        assert (README.parent / name).exists(), name
