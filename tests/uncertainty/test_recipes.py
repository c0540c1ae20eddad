"""What docs/recipes.md says in Python runs as it stands there, and prints what it says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

RECIPES = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text()
TITLES = re.findall(r"^## (.*)$", RECIPES, flags=re.MULTILINE)
BLOCKS = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", RECIPES, flags=re.DOTALL)


def test_each_has_its_output() -> None:
    assert len(TITLES) == len(BLOCKS) == RECIPES.count("```python") >= 7


@pytest.mark.parametrize(("block", "printed"), BLOCKS, ids=TITLES)
def test_it_runs(block: str, printed: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The words are the same; numbers may differ by the machine."""
    names: dict[str, Any] = {}
    exec(block, names)
    number = r"-?\d+(\.\d+)?"
    assert re.sub(number, "0", capsys.readouterr().out) == re.sub(number, "0", printed)
