"""An archive of torch.export, and copies of it that are edited."""

import json
import zipfile

import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 2)
        self.register_buffer("scale", torch.ones(2))

    def forward(self, x, *, shift):
        return {"y": self.fc(x) * self.scale + shift, "rows": x.reshape(-1)}


def rewritten(archive, folder, edits=None, more=None):
    """A copy of the archive: its program edited as JSON, and entries put beside or in the place of others."""
    target = folder / "edited.pt2"
    more = more or {}
    with zipfile.ZipFile(archive) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            inside = name.partition("/")[2]
            content = old.read(name)
            if inside == "models/model.json" and edits:
                program = json.loads(content)
                edits(program)
                content = json.dumps(program)
            if inside in more:
                content = more.pop(inside)
            new.writestr(name, content)
        for name, content in more.items():
            new.writestr(f"net/{name}", content)
    return target


def graph(program):
    return program["graph_module"]["graph"]


def target(program, name):
    graph(program)["nodes"][0]["target"] = name
