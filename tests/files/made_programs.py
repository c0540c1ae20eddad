"""Exported programs written by hand: a small one, whose end, or a branch at its end, goes through other nodes."""

import copy
import functools
import io
import json
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from tests.files.edited_archives import graph

Node = dict[str, Any]


class Small(torch.nn.Module):
    """What all of them are copies of: an input of 2 x 3, a weight, a buffer of whole numbers."""

    def __init__(self):
        super().__init__()
        self.fc = torch.nn.Linear(3, 2)
        self.register_buffer("rows", torch.tensor([0, 1, 1]))

    def forward(self, x):
        return self.fc(x).relu()


@functools.cache
def parts() -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "small.pt2")
        torch.export.save(torch.export.export(Small().eval(), (torch.ones(2, 3),)), path)
        with zipfile.ZipFile(path) as file:
            return {name: file.read(name) for name in file.namelist()}


def archive(edit=None, weights=None) -> bytes:
    """The program, its JSON and that of its weights edited."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, content in parts().items():
            change = {"model.json": edit, "model_weights_config.json": weights}.get(name.rpartition("/")[2])
            if change:
                found = json.loads(content)
                change(found)
                content = json.dumps(found).encode()
            file.writestr(name, content)
    return buffer.getvalue()


def with_text(text: bytes) -> bytes:
    """An archive with this in the place of the program."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, content in parts().items():
            file.writestr(name, text if name.endswith("model.json") else content)
    return buffer.getvalue()


def program_of(content: bytes) -> Any:
    """The program in an archive."""
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        return json.loads(file.read("small/models/model.json"))


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Where in a JSON value something plain stands, and what."""
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(inner, (*path, key))
    else:
        yield path, value


def changed(value: Any, path: tuple[Any, ...], leaf: Any) -> Any:
    """A copy with something else there."""
    found = place = copy.deepcopy(value)
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = leaf
    return found


def tensor(name: str) -> Node:
    return {"as_tensor": {"name": name}}


def size(name: str) -> Node:
    return {"as_sym_int": {"as_name": name}}


def step(target: str, /, *given: Node, out: Node | str = "planted", **named: Node) -> Node:
    """One node; its output is a tensor of that name, unless told otherwise. Arguments of aten's have names."""
    inputs = [{"name": "", "arg": arg, "kind": 1} for arg in given]
    inputs += [{"name": name, "arg": arg, "kind": 1} for name, arg in named.items()]
    outputs = [tensor(out) if isinstance(out, str) else out]
    name = out if isinstance(out, str) else "planted"
    return {
        "target": target, "inputs": inputs, "outputs": outputs, "metadata": {}, "name": name,
        "is_hop_single_tensor_return": None,
    }  # fmt: skip


def outputs(node: Node) -> list[str]:
    """The names of the tensors that it makes."""
    return [
        each["name"]
        for out in node["outputs"]
        for each in ([out["as_tensor"]] if "as_tensor" in out else out.get("as_tensors", []))
    ]


def planted(*nodes: Node, result: str = "planted", sizes: Any = ()) -> bytes:
    """The program, which goes through these nodes at its end; `sizes` are names of whole numbers in them."""

    def edit(program):
        inner = graph(program)
        inner["nodes"] += nodes
        inner["sym_int_values"] |= {name: {"as_int": 1} for name in sizes}
        for node in nodes:
            inner["tensor_values"] |= dict.fromkeys(outputs(node), inner["tensor_values"]["x"])
        inner["outputs"] = [tensor(result)]
        program["graph_module"]["signature"]["output_specs"] = [{"user_output": {"arg": tensor(result)}}]

    return archive(edit)


def within(*nodes: Node, result: str = "planted", out: str = "outer") -> Node:
    """The node that goes through these in both branches of a condition; `x` and the weights are theirs too."""
    with_x = ("x", "p_fc_weight", "p_fc_bias", "b_rows")

    def inner(program_graph):
        values = {name: program_graph["tensor_values"][name] for name in with_x}
        made = {"inputs": [tensor(name) for name in with_x], "outputs": [tensor(result)], "nodes": list(nodes)}
        for node in nodes:
            values |= dict.fromkeys(outputs(node), values["x"])
        empty = {"sym_int_values": {}, "sym_bool_values": {}, "sym_float_values": {}, "custom_obj_values": {}}
        return {**made, **empty, "tensor_values": values, "is_single_tensor_return": False}

    shared = inner(json.loads(parts()["small/models/model.json"])["graph_module"]["graph"])
    graphs = [{"as_graph": {"name": f"branch_{number}", "graph": shared}} for number in range(2)]
    operands = {"as_tensors": [{"name": name} for name in with_x]}
    made = step("torch.ops.higher_order.cond", {"as_bool": True}, *graphs, operands, out=out)
    return {**made, "name": f"to_{out}", "is_hop_single_tensor_return": False}
