"""What the README says in Python runs as it stands there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

README = Path(__file__).parent.parent / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS)
def test_python_runs(block: str, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    exec(block, names)
    assert "2 layers convert" in capsys.readouterr().out
    prediction = names["prediction"]
    assert prediction.mean.shape == (256, 10)
    assert prediction.total.allclose(prediction.aleatoric + prediction.epistemic)
    assert names["same"]
    assert type(names["plain"][0]).__name__ == "Linear"


def test_there_is_python() -> None:
    assert BLOCKS


def test_files_that_it_names_are_there() -> None:
    text = README.read_text()
    for name in re.findall(r"\]\(([\w/.-]+)\)", text) + re.findall(r"`?(scripts/\w+)", text):
        assert (README.parent / name).exists(), name
