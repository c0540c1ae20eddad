"""Names that hold escape codes, line breaks, HTML and shell's signs: no command shows them as they are."""

import io
import json
import re
import struct
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from rich.console import Console
from torch import nn

import bayesify
from bayesify.cli.commands import main
from bayesify.report.posteriors import show as show_posteriors
from bayesify.report.tables import show as show_plan
from tests.files.made_files import as_zip, safetensors_bytes

EVIL = (
    "\x1b[2J\x1b]0;x\x07\r\nError: run this: $(touch ran) `touch ran`; touch ran <script>alert(1)</script>\u202e\x9b"
    "\x1b]8;;http://x\x07here\x1b]8;;\x07[red]x[/red][link=http://x]y[/link][/nope]$\\frac{$ {0} %s"
)
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
    Path("class.pt").write_bytes(stores("afar", EVIL.replace(".", "")))
    Path("module.pt").write_bytes(stores(EVIL[:40], "Net"))
    Path("word.pt").write_bytes(stores("afar; touch ran #", "Net"))
    Path("zip.pt").write_bytes(as_zip(b"\x80\x02}.", {EVIL: b""}))
    entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    Path("w.safetensors").write_bytes(safetensors_bytes(json.dumps({EVIL: entry}).encode(), b"\0" * 4))
    quoted = EVIL.encode("unicode_escape").decode().replace("\\x1b", "\\e")
    Path("p.yaml").write_text(f'rules: [{{name: "{quoted}", targets: ["{quoted}"], method: lrt}}]\n')
    Path("q.yaml").write_text(f'"{quoted}": 1\nrules: [{{targets: ["no{quoted}"]}}]\n')


def stores(module: str, name: str) -> bytes:
    """A file of an object of that class."""
    texts = (part.encode() for part in (module, name))
    names = b"".join(b"X" + struct.pack("<I", len(text)) + text for text in texts)
    return as_zip(b"\x80\x04" + names + b"\x93)\x81}b.")


COMMANDS = [
    ["report", "class.pt"], ["report", "module.pt"], ["report", "word.pt"], ["report", "zip.pt"],
    ["report", "w.safetensors"], ["inspect", "w.safetensors"],
    ["report", "torch.nn:Linear", "--weights", "w.safetensors", "--arg", "in_features=1", "--arg", "out_features=1"],
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
    assert not re.search(r"add --allow [^'\n]*touch", shown)


def test_the_page_shows_it_as_text() -> None:
    run("inspect", "own.pt", "--html", "page.html")
    page = Path("page.html").read_text()
    assert "<script" not in page
    assert SHOWN.findall(page) == []
    assert "&lt;script&gt;" in page


@pytest.mark.parametrize("term", [False, True])
def test_markup_in_a_name_is_text(term: bool) -> None:
    """rich takes `[red]` for a colour, and `[/nope]` for an error, in texts that it is not told to leave alone."""
    made, found = bayesify.plan(network()), bayesify.inspect(bayesify.convert(network()))
    for show, given in ((show_plan, (made.title, made.rows, made.totals)), (show_posteriors, (found,))):
        file = io.StringIO()
        show(*given, Console(file=file, force_terminal=term, width=900, color_system=None), full=True)
        assert "[red]x[/red][link=http://x]y[/link][/nope]$\\frac{$ {0} %s" in file.getvalue()
        assert SHOWN.findall(re.sub(r"\x1b\[[\d;]*m", "", file.getvalue())) == []


def test_keys_of_outputs() -> None:
    class Keyed(nn.Linear):
        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:  # type: ignore[override]
            return {EVIL: super().forward(x), f"b{EVIL}": super().forward(x)}

    model = bayesify.convert(nn.Sequential(nn.Linear(4, 4), Keyed(4, 2)))
    found = bayesify.predict(model, torch.ones(3, 4), samples=2, output=EVIL)
    shown = [repr(found), found._repr_html_()]
    with pytest.raises(bayesify.BayesifyError) as told:
        bayesify.predict(model, torch.ones(3, 4), samples=2, output="none")
    assert [SHOWN.findall(text) for text in (*shown, str(told.value))] == [[]] * 3
    assert "<script" not in shown[1]
