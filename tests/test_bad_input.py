"""Broken policies, files and arguments: one message that helps, the right exit code, nothing written, nothing run."""

import os
import pickle
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from bayesify.cli.commands import main


class Evil:
    """Runs a command when it is unpickled."""

    def __reduce__(self):
        return os.system, ("touch pwned",)


NETS = """
import torch
from torch import nn
class Scales(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, 2))
    def forward(self, x): return x * self.weight
def fails(): raise RuntimeError("no such luck")
def returns_a_dict(): return {}
def needs(width): return nn.Linear(width, 2)
def norms(): return nn.BatchNorm1d(3)
def scales(): return Scales()
def exits(): raise SystemExit(0)
LIST = [1]
"""

POLICIES = {
    "typo.yaml": "rules:\n- target: [fc]\n",
    "regex.yaml": "rules: [{targets: ['[0-9]+']}]",
    "none.yaml": "rules: [{targets: [head]}]",
    "relu.yaml": "rules: [{targets: ['1']}]",
    "value.yaml": "posterior: {init_std: -1}",
    "version.yaml": "version: 2",
    "twice.yaml": "method: lrt\nmethod: flipout",
    "anchor.yaml": "ignore: &a ['0']",
    "star.yaml": "rules: [{targets: [*.conv]}]",
    "tab.yaml": "rules:\n\t- targets: [fc]",
    "open.yaml": "rules: [",
    "list.yaml": "[flipout]",
    "empty.yaml": "",
    "shadow.yaml": "rules: [{targets: [Linear]}, {name: late, targets: ['2']}]",
    "ignore.yaml": "ignore: [fcc]",
    "keep.yaml": "method: keep",
    "all.yaml": "ignore: ['**']",
    "family.yaml": "prior: {family: log_uniform}",
    "large.yaml": "#" * (1 << 20) + "\nmethod: lrt",
    "binary.yaml": b"method: \xff\xfe",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of broken things, shared: no test changes it."""
    folder = tmp_path_factory.mktemp("bad")
    before = Path.cwd()
    os.chdir(folder)
    plain = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    torch.save(plain, "mlp.pt")
    torch.save(plain.state_dict(), "sd.pt")
    torch.save({"epoch": 3, "model": plain.state_dict(), "optimizer": {}}, "checkpoint.pt")
    torch.save([1, 2], "list.pt")
    torch.save(nn.Sequential(nn.ReLU()), "relu.pt")
    torch.save(nn.Sequential(nn.Linear(2, 2).requires_grad_(False)), "frozen.pt")
    torch.save({"a": Evil()}, "evil_sd.pt")
    plain.planted = Evil()
    torch.save(plain, "evil.pt")
    torch.save(plain, "evil_old.pt", _use_new_zipfile_serialization=False)
    Path("evil.pkl").write_bytes(pickle.dumps(Evil()))
    Path("cut.pt").write_bytes(Path("mlp.pt").read_bytes()[:-200])
    Path("nothing.pt").write_bytes(b"")
    Path("page.pt").write_text("<!DOCTYPE html><html>404</html>")
    Path("text.pt").write_text("not a model")
    Path("taken.pt").write_text("precious")
    Path("folder").mkdir()
    Path("bad_nets.py").write_text(NETS)
    Path("broken_nets.py").write_text("import not_installed_at_all")
    for name, text in POLICIES.items():
        Path(name).write_bytes(text if isinstance(text, bytes) else text.encode())
    result = CliRunner().invoke(main, ["convert", "mlp.pt", "-o", "converted.pt"])
    assert result.exit_code == 0, result.output
    yield folder
    os.chdir(before)


def state(folder: Path) -> dict[str, tuple[int, int]]:
    found = (path for path in folder.rglob("*") if "__pycache__" not in path.parts)
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in found}


BAD = [
    # policies: exit code 2
    *[(f"convert mlp.pt --policy {name}", 2, said) for name, said in {
        "typo.yaml": "rule 1 (line 2): unknown key 'target'. Did you mean 'targets'?",
        "regex.yaml": "re:", "none.yaml": "'head'", "relu.yaml": "nothing in it has weights", "value.yaml": "init_std",
        "version.yaml": "version", "twice.yaml": "'method' appears twice", "anchor.yaml": "anchors are not allowed",
        "star.yaml": "quote patterns that start with *", "tab.yaml": "never tabs", "open.yaml": "line 1",
        "list.yaml": "not a mapping", "empty.yaml": "the file is empty", "shadow.yaml": "can never apply",
        "ignore.yaml": "'fcc'", "family.yaml": "multiplicative", "large.yaml": "1 MiB", "binary.yaml": "not UTF-8",
        "moppd": "Did you mean 'moped'?", "folder": "cannot be read", "nowhere.yaml": "Presets:",
    }.items()],
    ("policy check typo.yaml", 2, "Did you mean 'targets'?"),
    ("policy show mopde", 2, "Did you mean 'moped'?"),
    ("report mlp.pt --policy typo.yaml", 2, "Did you mean 'targets'?"),
    # nothing to convert: 3
    ("convert mlp.pt --policy keep.yaml", 3, "keeps every one"),
    ("convert mlp.pt --policy all.yaml", 3, "keeps every one"),
    ("convert relu.pt", 3, "no layer that can become variational"),
    ("convert frozen.pt", 3, "frozen: convert"),
    ("convert converted.pt", 3, "already variational"),
    ("report converted.pt", 3, "already variational"),
    ("revert mlp.pt -o out.pt", 3, "no variational layer"),
    ("convert bad_nets:norms", 3, "no layer that can become variational"),
    ("convert bad_nets:scales", 3, "blocked"),
    # files: 4
    ("convert sd.pt", 4, "bayesify convert package.module:Net --weights sd.pt"),
    ("convert checkpoint.pt", 4, "--key model"),
    ("convert list.pt", 4, "list.pt"),
    ("convert evil.pt", 4, "no --allow lifts"),
    ("convert evil.pt --allow posix.system", 4, "no --allow lifts"),
    ("convert evil_old.pt", 4, "no --allow lifts"),
    ("convert evil_sd.pt", 4, "could run code"),
    ("convert evil.pkl", 4, "plain pickle"),
    ("convert bad_nets:needs --arg width=3 --weights evil_sd.pt", 4, "could run code"),
    ("report evil.pt", 4, "no --allow lifts"),
    ("revert evil.pt -o out.pt", 4, "no --allow lifts"),
    ("convert cut.pt", 4, "cut off"),
    ("convert nothing.pt", 4, "is empty"),
    ("convert page.pt", 4, "web page"),
    ("convert text.pt", 4, "text file"),
    ("convert folder", 4, "folder"),
    ("convert bad_nets:needs --arg width=3 --weights sd.pt", 4, "doesn't fit"),
    ("convert bad_nets:needs --arg width=3 --weights cut.pt", 4, "cut off"),
    # factories: 4
    ("convert bad_nets:fails", 4, "RuntimeError: no such luck"),
    ("convert bad_nets:exits", 4, "SystemExit"),
    ("convert bad_nets:returns_a_dict", 4, "dict, not an nn.Module"),
    ("convert bad_nets:needs", 4, "width"),
    ("convert bad_nets:needs --arg wdith=3", 4, "Did you mean 'width'?"),
    ("convert bad_nets:fail", 4, "Did you mean 'fails'?"),
    ("convert bad_nets:LIST", 4, "not a callable"),
    ("convert no_such_module:net", 4, "no module 'no_such_module'"),
    ("convert broken_nets:net", 4, "not_installed_at_all"),
    # usage: 2
    ("convert nowhere.pt", 2, "nowhere.pt: no such file"),
    ("revert nowhere.pt -o out.pt", 2, "nowhere.pt: no such file"),
    ("convert nowhere/x:y/z.pt", 2, "no such file"),
    ("convert bad_nets:needs --arg width=3 --weights nowhere.pt", 2, "no such file"),
    ("convert bad_nets:needs --arg width=3 --weights checkpoint.pt --key modle", 2, "Did you mean 'model'?"),
    ("convert mlp.pt -o taken.pt", 2, "--force"),
    ("convert mlp.pt -o mlp.pt --force", 2, "never overwritten"),
    ("revert converted.pt -o taken.pt", 2, "--force"),
    ("convert mlp.pt -o folder --force", 2, "is a folder"),
    ("convert mlp.pt -o nowhere/out.pt", 2, "there is no folder"),
    ("convert mlp.pt -o taken.pt/out.pt", 2, "there is no folder"),
    ("convert mlp.pt -o /dev/null --force", 2, "not a regular file"),
    (f"convert mlp.pt -o {'n' * 300}", 2, "cannot be written"),
    ("convert mlp.pt --arg width=3", 2, "--arg goes with a factory"),
    ("convert mlp.pt --weights sd.pt", 2, "--weights goes with a factory"),
    ("convert bad_nets:needs --arg width=3 --key model", 2, "--key goes with --weights"),
    ("convert bad_nets:needs --allow a.b", 2, "--allow goes with a file"),
    ("convert bad_nets:needs --arg width", 2, "NAME=VALUE"),
    ("convert bad_nets:needs --arg width=3 --arg width=4", 2, "twice"),
    ("convert mlp.pt --allow nonsense", 2, "--allow 'nonsense'"),
    ("convert mlp.pt --method flipuot", 2, "'flipuot' is not one of 'flipout', 'lrt'"),
    ("convert mlp.pt --kl-name 3", 2, "not a name for an attribute"),
    ("convert mlp.pt --kl-name forward --dry-run", 1, "--kl-name kl_q"),
    ("convert", 2, "Missing argument 'MODEL'"),
    ("convert mlp.pt extra", 2, "unexpected extra argument"),
    ("convert mlp.pt --dryrun", 2, "--dry-run"),
    ("revert converted.pt", 2, "Missing option '-o'"),
    ("revert converted.pt -o out.pt --weights median", 2, "'mean', 'sample'"),
    ("convrt mlp.pt", 2, "No such command 'convrt'"),
    ("policy chek moped", 2, "No such command 'chek'"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "code", "said"), BAD, ids=[line[:60] for line, *_ in BAD])
def test_refused(folder, line, code, said):
    before = state(folder)
    result = CliRunner().invoke(main, line.split())
    sys.modules.pop("bad_nets", None)
    assert said in result.stderr
    assert result.exit_code == code, result.output
    assert isinstance(result.exception, SystemExit)
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    message = result.stderr[result.stderr.index("Error: ") :]
    assert len(message.strip().splitlines()) == 1
    assert "\x1b" not in message
    assert state(folder) == before
