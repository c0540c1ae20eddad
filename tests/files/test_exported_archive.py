"""Archives of torch.export: opened without torch's own reader, and refused where anything in them could run."""

import contextlib
import io
import json
import logging
import pathlib
import pickle
import sys
import zipfile

import pytest
import torch
from torch._export.serde.serialize import serialize

from bayesify.errors import FileRefusedError
from bayesify.files.load_model import load_model as load
from bayesify.files.untrusted.exported_archive import open_program
from tests.files.edited_archives import graph, rewritten, target


@pytest.fixture
def marker(tmp_path, monkeypatch):
    """Where planted code leaves its mark; relative names in planted text land beside it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path / "ran"


class Planted:
    def __reduce__(self):
        return pathlib.Path.touch, (pathlib.Path("ran"),)


PLANTED = "open('ran','w')"


def pickled(value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def renamed(old, new):
    """The program with one name replaced wherever it stands."""

    def edit(program):
        text = json.dumps(program).replace(json.dumps(old), json.dumps(new))
        program.clear()
        program.update(json.loads(text))

    return edit


def call_signature(program):
    return program["graph_module"]["module_call_graph"][0]["signature"]


def in_spec(program, change):
    signature = call_signature(program)
    spec = json.loads(signature["in_spec"])
    change(spec[1])
    signature["in_spec"] = json.dumps(spec)


def sizes(program, expression):
    graph(program)["tensor_values"]["x"]["sizes"][0] = {"as_expr": {"expr_str": expression, "hint": None}}


def config(weights):
    text = {"config": weights}
    return json.dumps(text)


META = {
    "dtype": 7, "sizes": [{"as_int": 2}], "requires_grad": False, "device": {"type": "cpu", "index": None},
    "strides": [{"as_int": 1}], "storage_offset": {"as_int": 0}, "layout": 7,
}  # fmt: skip

TEXTS = {
    "size": lambda p: sizes(p, f"__import__('pathlib').Path('ran').touch() or {PLANTED}"),
    "size by attribute": lambda p: sizes(p, "Integer(1).__class__"),
    "size by lambda": lambda p: sizes(p, f"(lambda: {PLANTED})()"),
    "output size": lambda p: graph(p)["sym_int_values"].update(s9={"as_expr": {"expr_str": PLANTED, "hint": None}}),
    "input name": renamed("x", f"x={PLANTED}"),
    "node name": renamed("linear", f"linear = {PLANTED}; linear"),
    "weight name": renamed("fc.weight", "__class__.weight"),
    "weight path": renamed("fc.weight", f"fc']+{PLANTED}+['weight"),
    "size that is a tower of powers": lambda p: sizes(p, "9**9**9**9"),
    "size that is a tower of sympy's powers": lambda p: sizes(p, "Pow(9, Pow(9, Pow(9, Integer(9))))"),
    "size with too many digits": lambda p: sizes(p, "Float('1e999999999')"),
    "operator torch.os": lambda p: target(p, "torch.os.system"),
    "operator of python": lambda p: target(p, "_operator.methodcaller"),
    "operator that reads files": lambda p: target(p, "torch.ops.aten.from_file.default"),
    "operator of a stranger": lambda p: target(p, "torch.ops.mylib.run.default"),
    "operator of an extension": lambda p: target(p, "#mylib:run"),
    "argument names": lambda p: call_signature(p).update(forward_arg_names=[f"x={PLANTED}", "shift"]),
    "keyword names": lambda p: in_spec(p, lambda s: s["children_spec"][1].update(context=f'["\':{PLANTED},\'"]')),
    "device": lambda p: graph(p)["tensor_values"]["x"]["device"].update(type=PLANTED),
    "a list for a number": lambda p: graph(p)["tensor_values"]["x"].update(dtype=[7]),
}  # fmt: skip


@pytest.mark.parametrize("where", TEXTS)
def test_a_program_with_planted_text_is_refused_and_runs_nothing(where, archive, tmp_path, marker):
    path = rewritten(archive, tmp_path, TEXTS[where])
    with pytest.raises(FileRefusedError) as refused:
        open_program(path)
    assert refused.value.exit_code == 4
    assert str(path) in str(refused.value)
    assert not marker.exists()


PAYLOADS = {
    "sample inputs": {"data/sample_inputs/model.pt": pickled(((Planted(),), {}))},
    "sample inputs, a bare pickle": {"data/sample_inputs/model.pt": pickle.dumps(Planted())},
    "old weights": {"data/weights/model.pt": pickled({"fc.weight": Planted()})},
    "old constants": {"data/constants/model.pt": pickled({"c": Planted()})},
    "a pickled weight": {
        "data/weights/weight_0": pickled(Planted()),
        "data/weights/model_weights_config.json": config(
            {"fc.weight": {"path_name": "weight_0", "is_param": True, "use_pickle": True, "tensor_meta": META}}
        ),
    },
    "a weight elsewhere": {
        "data/weights/model_weights_config.json": config(
            {"fc.weight": {"path_name": "../extra/w", "is_param": True, "use_pickle": False, "tensor_meta": META}}
        ),
    },
    "an opaque object": {"data/constants/opaque_obj_0": pickle.dumps(Planted())},
    "a script object": {"data/constants/custom_obj_0": b"\x80"},
    "compiled code": {"data/aotinductor/model/a.wrapper.so": b"\x7fELF"},
    "an extra file": {"extra/notes": pickle.dumps(Planted())},
    "an extra file of torch.save": {"extra/notes": pickled(Planted())},
    "a script": {"code/__torch__.py": b"print(1)"},
}


@pytest.mark.parametrize("where", PAYLOADS)
def test_an_archive_with_a_planted_payload_is_refused_and_runs_nothing(where, archive, tmp_path, marker):
    path = rewritten(archive, tmp_path, more=dict(PAYLOADS[where]))
    with pytest.raises(FileRefusedError) as refused:
        load(path)
    assert refused.value.exit_code == 4
    assert not marker.exists()


def test_what_is_planted_would_run_in_torchs_own_reader(archive, tmp_path, marker, monkeypatch):
    """Else the tests above would show nothing."""
    monkeypatch.setattr(logging, "raiseExceptions", False)  # torch's warning about it has a format error
    with contextlib.suppress(Exception):
        torch.export.load(rewritten(archive, tmp_path, more=dict(PAYLOADS["sample inputs"])))
    assert marker.exists()


def test_guards_are_left_out_and_never_run(archive, tmp_path, marker):
    path = rewritten(archive, tmp_path, lambda p: p.update(guards_code=[PLANTED, f"L['x'].size()[0] == {PLANTED}"]))
    open_program(path)(torch.randn(2, 3), shift=torch.zeros(2))
    assert not marker.exists()


def test_objects_of_foreign_classes_in_the_inputs_become_plain(archive, tmp_path, marker):
    """torch would import the module that a defaultdict's factory, or an enum among the keys, is said to be of."""

    def change(spec):
        spec["children_spec"][1].update(
            type="collections.defaultdict",
            context=json.dumps(
                {"default_factory_module": "antigravity", "default_factory_name": "fly", "dict_context": []}
            ),
        )

    path = rewritten(archive, tmp_path, lambda p: in_spec(p, change))
    assert open_program(path).fc.weight.equal(open_program(archive).fc.weight)
    assert "antigravity" not in sys.modules
    assert not marker.exists()


@pytest.mark.parametrize("meta", [False, True])
def test_the_program_computes_what_was_exported(meta, archive):
    program = load(archive, meta=meta)
    names = {"fc.weight", "fc.bias", "scale"}
    assert set(program.state_dict()) == names
    assert all(value.is_meta == meta for value in program.state_dict().values())
    if not meta:
        expected = torch.export.load(archive).module()
        x, shift = torch.randn(7, 3), torch.randn(2)
        assert all(
            torch.equal(one, other)
            for one, other in zip(program(x, shift=shift).values(), expected(x, shift=shift).values(), strict=True)
        )


@pytest.mark.parametrize("planted", [False, True])
def test_the_format_before_torch_2_8(planted, archive, tmp_path, marker):
    parts = serialize(torch.export.load(archive))
    path = tmp_path / "old.pt2"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("version", "8.20")
        file.writestr("serialized_exported_program.json", parts.exported_program)
        file.writestr("serialized_state_dict.pt", pickled(Planted()) if planted else parts.state_dict)
        file.writestr("serialized_constants.pt", parts.constants)
        file.writestr("serialized_example_inputs.pt", parts.example_inputs)
    if planted:
        with pytest.raises(FileRefusedError, match="which could run code"):
            open_program(path)
        assert not marker.exists()
    else:
        x, shift = torch.randn(7, 3), torch.randn(2)
        assert torch.equal(open_program(path)(x, shift=shift)["y"], open_program(archive)(x, shift=shift)["y"])
