"""Programs that call kernels which check nothing: read as the operators above them, or refused."""

import json
import zipfile

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bayesify
from bayesify.errors import FileRefusedError
from bayesify.programs.serialized.checked_strings import refuse_operator


class Normalized(nn.Module):
    """Batch norm, which torch decomposes into a kernel of its own."""

    def __init__(self):
        super().__init__()
        self.project, self.norm = nn.Linear(4, 12), nn.BatchNorm1d(12)

    def forward(self, x):
        return self.norm(self.project(x)).relu()


def exported(module, path, *args, decomposed=False):
    program = torch.export.export(module.eval(), args)
    program = program.run_decompositions() if decomposed else program
    torch.export.save(program, path)
    return {str(node.target) for node in program.graph.nodes}


def test_kernels_of_a_decomposed_program_are_read_as_what_is_above_them(tmp_path):
    model, x = Normalized().eval(), torch.randn(2, 4)
    called = exported(model, tmp_path / "m.pt2", x, decomposed=True)
    assert any("_native_batch_norm_legit_no_training" in name for name in called)
    opened = bayesify.load(tmp_path / "m.pt2")
    assert torch.allclose(opened(x), model(x), atol=1e-6)
    targets = {str(node.target) for node in opened.graph.nodes}
    assert "aten.batch_norm.default" in targets
    assert not {name for name in targets if "legit" in name}
    converted = bayesify.convert(opened)
    with bayesify.posterior_mean(converted):
        assert torch.allclose(converted(x), model(x), atol=1e-6)


class Normed(nn.Module):
    def __init__(self, g):
        super().__init__()
        self.v, self.g = nn.Parameter(torch.randn(64, 4)), nn.Parameter(g)

    def forward(self, x):
        return x @ torch._weight_norm(self.v, self.g, 0).t()


class Bags(nn.Module):
    def __init__(self, offsets):
        super().__init__()
        self.table = nn.Parameter(torch.randn(9, 4))
        self.register_buffer("offsets", torch.tensor(offsets))

    def forward(self, rows):
        return F.embedding_bag(rows, self.table, self.offsets)


def test_what_torch_itself_does_not_check(tmp_path):
    """A weight norm with too few lengths, bags that begin before their first row: both end the process by SIGSEGV."""
    path, rows = tmp_path / "m.pt2", torch.tensor([0, 1, 2])
    exported(Normed(torch.ones(64, 1)), path, torch.randn(2, 4))
    assert bayesify.load(path)(torch.ones(2, 4)).shape == (2, 64)
    exported(Bags([0, 2]), path, rows)
    assert bayesify.load(path)(rows).shape == (2, 4)
    exported(Bags([0, 1 << 30]), path, rows)
    with zipfile.ZipFile(path) as file:
        parts = {name: file.read(name) for name in file.namelist()}
    at = next(name for name, data in parts.items() if data[:16] == torch.tensor([0, 1 << 30]).numpy().tobytes())
    parts[at] = torch.tensor([0, -(1 << 30)]).numpy().tobytes() + parts[at][16:]
    with zipfile.ZipFile(path, "w") as file:
        for name, data in parts.items():
            file.writestr(name, data)
    with pytest.raises(FileRefusedError, match="bags whose beginnings"):
        bayesify.load(path)


def test_a_weight_norm_with_too_few_lengths(tmp_path):
    path = tmp_path / "m.pt2"
    exported(Normed(torch.ones(64, 1)), path, torch.randn(2, 4))
    with zipfile.ZipFile(path) as file:
        parts = {name: file.read(name) for name in file.namelist()}
    for name in parts:
        if name.endswith("model_weights_config.json"):
            config = json.loads(parts[name])
            config["config"]["g"]["tensor_meta"]["sizes"][0] = {"as_int": 1}
            parts[name] = json.dumps(config).encode()
        if name.endswith("models/model.json"):
            program = json.loads(parts[name])
            program["graph_module"]["graph"]["tensor_values"]["p_g"]["sizes"][0] = {"as_int": 1}
            parts[name] = json.dumps(program).encode()
    with zipfile.ZipFile(path, "w") as file:
        for name, data in parts.items():
            file.writestr(name, data)
    with pytest.raises(FileRefusedError, match="weight norm whose parts"):
        bayesify.load(path)


def test_every_operator_that_torch_has_is_refused_unless_it_is_of_networks():
    """Walked by schema: what names files, lays memory out, or takes other things than tensors and numbers."""
    strange, planted = [], 0
    for name in torch._C._dispatch_get_all_op_names():
        space, _, rest = name.partition("::")
        operator, _, overload = rest.partition(".")
        target = f"torch.ops.{space}.{operator}.{overload or 'default'}"
        planted += 1
        try:
            refuse_operator(target)
        except FileRefusedError:
            continue
        schema = getattr(getattr(getattr(torch.ops, space), operator), overload or "default")._schema
        kinds = {str(argument.type) for argument in schema.arguments}
        if any(word in kind for kind in kinds for word in ("Storage", "Stream", "__torch__", "Any", "QScheme")):
            strange.append(target)
        strange += [target] if any(argument.name == "filename" for argument in schema.arguments) else []
    assert planted > 2000
    assert strange == []
