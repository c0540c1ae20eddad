"""What docs/recipes.md says in Python runs as it stands there, and prints what it says."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

import bayesify

RECIPES = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text()
TITLES = re.findall(r"^## (.*)$", RECIPES, flags=re.MULTILINE)
BLOCKS = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", RECIPES, flags=re.DOTALL)


def test_each_has_its_output() -> None:
    assert len(TITLES) == len(BLOCKS) == RECIPES.count("```python") >= 7


@pytest.mark.parametrize(("block", "printed"), BLOCKS, ids=TITLES)
def test_it_runs(block: str, printed: str, capsys: pytest.CaptureFixture[str], vision: Any) -> None:
    """The words are the same; numbers may differ by the machine."""
    skip_without_packages(block)
    names: dict[str, Any] = {}
    capsys.readouterr()
    exec(block, names)
    number = r"-?\d+(\.\d+)?"
    assert re.sub(number, "0", capsys.readouterr().out) == re.sub(number, "0", printed)


def skip_without_packages(block: str) -> None:
    """transformers imports torchvision, which `vision` makes importable; others are optional here."""
    for package in re.findall(r"^(?:import|from) (\w+)", block, flags=re.MULTILINE):
        pytest.importorskip(package)


def test_the_service_under_load() -> None:
    """Sixteen threads: every answer is its own question's, drawn from the posterior, and the model stays as it was."""
    block = BLOCKS[TITLES.index("A service")][0]
    skip_without_packages(block)
    names: dict[str, Any] = {}
    exec(block, names)
    model, client = names["model"], names["client"]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    rows = torch.randn(40, 4) * 3
    expected = bayesify.predict(model, rows, task="classification", samples=4000)

    def ask(at: int) -> tuple[int, list[float]]:
        sent = client.post("/predict", json={"rows": [rows[at].tolist()]})
        assert sent.status_code == 200
        return at, sent.json()["mean"][0]

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(ask, [at % 40 for at in range(320)]))
    for at, mean in answers:
        error = (torch.tensor(mean) - expected.mean[at]).abs()
        assert (error <= 7 * (expected.std[at] / 4 + 1e-3)).all()
    assert len({tuple(mean) for _, mean in answers}) > 300
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module.training for module in model.modules())
