"""Names that hold escape codes, line breaks, HTML and shell's signs: no command shows them as they are."""

import re
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import nn

import bayesify
from bayesify.cli.commands import main

EVIL = "\x1b[2J\x1b]0;x\x07\r\nError: run this: $(touch ran) `touch ran`; touch ran <script>alert(1)</script>\u202e\x9b"
SHOWN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]")


def network() -> nn.Module:
    plain = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    plain.add_module(EVIL, nn.Linear(2, 2))
    plain.add_module(f"norm{EVIL}", nn.BatchNorm1d(2))
    plain.note = EVIL
    return plain


def run(*words: str) -> str:
    """What the command shows; whether it succeeds is another test's."""
    result = CliRunner().invoke(main, list(words))
    assert result.exit_code in (0, 2, 3, 4), result.output
    return result.output + result.stderr


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with models, inputs, weights and policies that hold the name, and in it."""
    monkeypatch.chdir(tmp_path)
    model = network()
    torch.save(model, "m.pt")
    bayesify.save(bayesify.convert(model), "own.pt")
    torch.save({EVIL: model.state_dict(), f"b{EVIL}": model.state_dict()}, "two.pt")
    torch.save({EVIL: 1}, "odd.pt")
    torch.save(torch.ones(2, 4), "y.pt")
    quoted = EVIL.encode("unicode_escape").decode().replace("\\x1b", "\\e")
    Path("p.yaml").write_text(f'rules: [{{name: "{quoted}", targets: ["{quoted}"], method: lrt}}]\n')
    Path("q.yaml").write_text(f'"{quoted}": 1\nrules: [{{targets: ["no{quoted}"]}}]\n')


COMMANDS = [
    ["report", "m.pt"], ["report", "m.pt", "--full"], ["report", "m.pt", "--json"], ["convert", "m.pt", "--force"],
    ["report", "m.pt", "--policy", "p.yaml"], ["report", "m.pt", "--policy", "q.yaml"], ["policy", "check", "q.yaml"],
    ["policy", "check", "p.yaml"], ["policy", "show", "p.yaml"], ["policy", "show", "p.yaml", "--as-written"],
    ["convert", "m.pt", "-o", f"out{EVIL}/x.pt"], ["report", f"none{EVIL}"], ["report", "m.pt", "--key", EVIL],
    ["report", "m.pt", "--input", EVIL], ["report", "m.pt", "--allow", EVIL], ["report", "two.pt"],
    ["report", "torch.nn:Linear", "--weights", "two.pt", "--arg", "in_features=1", "--arg", "out_features=1"],
    ["report", "torch.nn:Linear", "--weights", "odd.pt", "--arg", f"{EVIL}=1"], ["inspect", "own.pt"],
    ["inspect", "own.pt", "--json"], ["inspect", "own.pt", "--full"], ["inspect", "m.pt"],
    ["predict", "own.pt", "--inputs", "y.pt", "--part", EVIL],
    ["predict", "own.pt", "--inputs", f"{EVIL}.csv"], ["revert", "own.pt", "-o", f"no{EVIL}/x"],
    ["export", "own.pt", "-o", f"x{EVIL}", "--mean", "--input", "2x4"], ["revert", "own.pt", "-o", "plain.pt"],
]  # fmt: skip


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: " ".join(words)[:40].encode("unicode_escape").decode())
def test_no_command_shows_it_as_it_is(words: list[str]) -> None:
    shown = run(*words)
    assert SHOWN.findall(shown.replace("\r", "\x01")) == []
    assert "\nError: run this" not in shown
    assert not Path("ran").exists()


def test_the_page_shows_it_as_text() -> None:
    run("inspect", "own.pt", "--html", "page.html")
    page = Path("page.html").read_text()
    assert "<script" not in page
    assert SHOWN.findall(page) == []
    assert "&lt;script&gt;" in page
