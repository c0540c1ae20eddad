"""Programs that call kernels which check nothing: read as the operators above them, or refused."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bayesify
from bayesify.errors import FileRefusedError
from bayesify.programs.kernel_checks import _KERNELS
from bayesify.programs.serialized.checked_strings import refuse_operator
from bayesify.programs.serialized.operator_names import ATEN
from tests.files.made_programs import planted, step, tensor, within


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
    def __init__(self):
        super().__init__()
        self.v, self.g = nn.Parameter(torch.randn(64, 4)), nn.Parameter(torch.ones(64, 1))

    def forward(self, x):
        return x @ torch._weight_norm(self.v, self.g, 0).t()


class Bags(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.randn(9, 4))

    def forward(self, rows, offsets):
        return F.embedding_bag(rows, self.table, offsets)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.project = nn.Linear(4, 4)

    def forward(self, x, y):
        return F.scaled_dot_product_attention(self.project(x), y, y)


MODELS = {
    "weight norm": (Normed(), (torch.randn(2, 4),)),
    "bags": (Bags(), (torch.tensor([0, 1, 2]), torch.tensor([0, 2]))),
    "attention": (Attention(), (torch.randn(2, 3, 4, 4), torch.randn(2, 3, 7, 4))),
}


@pytest.mark.parametrize("name", MODELS)
def test_calls_that_fit_compute_what_they_compute(name, tmp_path):
    (model, x), path = MODELS[name], tmp_path / "m.pt2"
    exported(model, path, *x)
    opened = bayesify.load(path)
    assert torch.equal(opened(*x), model(*x))
    assert torch.equal(torch.compile(opened, backend="eager", fullgraph=True)(*x), model(*x))
    assert torch.equal(torch.export.export(opened, x).module()(*x), model(*x))


SELF = {"self": tensor("x"), "dim": {"as_int": 0}}
KEY = step("torch.ops.aten.slice.Tensor", **SELF, start={"as_int": 0}, end={"as_int": 1}, out="key")
ROWS = tensor("b_rows")
LESS = step("torch.ops.aten.sub.Scalar", self=ROWS, other={"as_int": 9}, out="less")
IN_PLACE = step("torch.ops.aten.sub_.Scalar", self=ROWS, other={"as_int": 9}, out="less")
NAMES = ("query", "key", "value")


def attention(*given):
    return step("torch.ops.aten.scaled_dot_product_attention.default", **dict(zip(NAMES, given, strict=True)))


def bags(offsets):
    return step("torch.ops.aten.embedding_bag.default", weight=tensor("p_fc_weight"), indices=ROWS, offsets=offsets)


MISFITS = {
    "a weight norm whose parts": [
        step("torch.ops.aten._weight_norm.default", v=tensor("p_fc_weight"), g=tensor("p_fc_bias"))
    ],
    "attention whose keys and values": [KEY, attention(tensor("x"), tensor("key"), tensor("x"))],
    "attention whose keys": [KEY, attention(tensor("x"), tensor("x"), tensor("key"))],
    "bags whose beginnings": [LESS, bags(tensor("less"))],
    "bags whose": [IN_PLACE, bags(ROWS)],
}  # fmt: skip


@pytest.mark.parametrize("where", ["at its end", "in a branch"])
@pytest.mark.parametrize("name", MISFITS)
def test_calls_that_torch_itself_does_not_check(name, where, file):
    """Each reads behind its tensors in torch; sizes and numbers are those at the call, whatever the file said."""
    nodes = MISFITS[name]
    made = planted(*nodes) if where == "at its end" else planted(within(*nodes), result="outer")
    opened = bayesify.load(file(made))
    for model in (opened, copy.deepcopy(opened)):
        with torch.no_grad(), pytest.raises(FileRefusedError, match=name):
            model(torch.ones(2, 3))


def test_attention_of_the_list_is_checked_here_or_by_torch():
    """By name, so that one that is added is looked at too."""
    for name in [name for name in sorted(ATEN) if "attention" in name]:
        call = getattr(torch.ops.aten, name)
        if name not in _KERNELS:
            with pytest.raises(RuntimeError, match="Expected size"):
                call(torch.ones(1, 1, 2, 4), torch.ones(1, 1, 2, 4), torch.ones(1, 1, 3, 4))


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
