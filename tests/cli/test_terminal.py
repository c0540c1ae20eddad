"""What a terminal gets: ASCII where it can show no more, no escape codes from files; and the smaller options."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from ruamel.yaml import YAML
from torch import nn

import bayesify
from bayesify.cli.commands import main
from bayesify.cli.terminal import busy

ROOT = Path(__file__).resolve().parents[2]
ARROWS = """
import click
from bayesify.cli.terminal import Commands, say
@click.group(cls=Commands)
def main(): pass
@main.command()
def show(): say("a → b ×2 · √3 w₀ … ─ 層"); say("c → d", err=True)
main()
"""
SHOWN = "a → b ×2 · √3 w₀ … ─ 層\n", "c → d\n"
IN_ASCII = "a -> b x2 * sqrt3 w0 ... - ?\n", "c -> d\n"


def run(*args: str, code: int = 0):
    result = CliRunner().invoke(main, args)
    assert result.exit_code == code, result.output
    return result


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"LC_ALL": "C"}, IN_ASCII),
        ({"LC_ALL": "POSIX"}, IN_ASCII),
        ({"LANG": "C", "LC_ALL": "C.UTF-8"}, SHOWN),
        ({"LC_ALL": "C", "PYTHONUTF8": "1"}, SHOWN),
        ({"PYTHONIOENCODING": "ascii"}, IN_ASCII),
        ({}, SHOWN),
    ],
    ids=str,
)
def test_arrows_in_ascii_where_the_locale_asks_for_it(environment: dict[str, str], expected: tuple[str, str]) -> None:
    hidden = "LC_ALL", "LC_CTYPE", "LANG", "PYTHONIOENCODING", "PYTHONUTF8"
    env = {name: value for name, value in os.environ.items() if name not in hidden} | environment
    ran = subprocess.run([sys.executable, "-c", ARROWS, "show"], capture_output=True, cwd=ROOT, env=env, check=True)
    assert (ran.stdout.decode(), ran.stderr.decode()) == expected


def test_names_from_files_and_arguments_are_escaped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for command in (["report"], ["policy", "check"], ["convert", "mlp.pt", "--policy"]):
        err = run(*command, "\x1b[2Jgone\u202e", code=2).stderr
        assert r"\x1b[2Jgone\u202e" in err
        assert err.removesuffix("\n").isprintable()
    Path("ok\x1b.yaml").write_text("method: lrt\n")
    assert run("policy", "check", "ok\x1b.yaml").stdout == "ok\\x1b.yaml: a valid policy, no rules\n"


def test_what_is_going_on_is_no_markup(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    with busy("Converting [/red]\x1b[2J"):
        pass
    assert "\x1b[2J" not in capsys.readouterr().err


@pytest.fixture
def converted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    bayesify.save(bayesify.convert(nn.Sequential(nn.Linear(4, 8)), "flipout"), "mlp.flipout.pt")
    return "mlp.flipout.pt"


def test_a_seed_gives_the_same_draw_again(converted: str) -> None:
    draws = []
    for seed in ("7", "7", "8"):
        run("revert", converted, "-o", "draw.pt", "--weights", "sample", "--seed", seed, "--force")
        draws.append(bayesify.load("draw.pt")[0].weight)
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


@pytest.mark.parametrize("options", [["--seed", "7"], ["--weights", "sample", "--seed", "-1"]])
def test_a_seed_that_does_not_fit(converted: str, options: list[str]) -> None:
    assert "--seed" in run("revert", converted, "-o", "plain.pt", *options, code=2).stderr
    assert not Path("plain.pt").exists()


def test_a_policy_is_shown_with_all_its_defaults_or_as_it_is_written() -> None:
    shown = run("policy", "show", "lrt").stdout
    for line in ("method: lrt", "frozen: keep", "unmatched: error", "  init_std: auto", "  mean: auto"):
        assert line in shown.splitlines()
    written = run("policy", "show", "lrt", "--as-written").stdout
    assert written == (ROOT / "configs/lrt.yaml").read_text()
    assert "init_std" not in written


def test_the_preset_flipout_names_every_setting_with_its_default() -> None:
    text = (ROOT / "configs/flipout.yaml").read_text()
    data = YAML(typ="safe").load(text)
    assert {*data, "ignore", "rules"} == {*bayesify.Policy.model_fields}
    assert data == {key: value for key, value in bayesify.Policy().to_dict().items() if key in data}
