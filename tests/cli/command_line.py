"""Running the command line in a folder with a model and code, in this process and in one of its own."""

from pathlib import Path

from click.testing import CliRunner

from bayesify.cli.commands import main

NETS = """
import sys, time, warnings
from torch import nn

class Net(nn.Module):
    def __init__(self, width=8, nap=0):
        super().__init__()
        print("the model's own chatter")
        warnings.warn("torch's own worry")
        time.sleep(nap)
        self.a = nn.Linear(4, width)
        self.b = nn.Linear(width, 2)

    def forward(self, x):
        return self.b(self.a(x).relu())

def named():
    model = nn.Sequential(nn.Linear(2, 2))
    model.kl = 3
    return model
"""


def run(*args: str, code: int = 0):
    result = CliRunner().invoke(main, args)
    assert result.exit_code == code, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result


def files(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {str(path): path.read_bytes() for path in found}
