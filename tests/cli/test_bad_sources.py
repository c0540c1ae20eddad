"""What is not a file is refused by every command before anything is read."""

from __future__ import annotations

from pathlib import Path

import pytest

from .command_line import run


@pytest.mark.parametrize("command", ["convert", "report"])
@pytest.mark.parametrize(("source", "code"), [(".", 4), ("/", 4), ("", 2), ("gone.pt", 2)])
def test_what_is_not_a_file(command: str, source: str, code: int, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    message = run(command, source, code=code).stderr
    assert "unexpected" not in message
    assert ("is a folder" if code == 4 else "no such file") in message
    assert not list(tmp_path.iterdir())
