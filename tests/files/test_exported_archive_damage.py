"""Archives of torch.export that are damaged, or whose weights do not fit, are refused."""

import json
import zipfile
from random import Random

import pytest
import torch

from bayesify.errors import FileRefusedError
from bayesify.files.load_model import load_model as load
from bayesify.files.untrusted.exported_archive import open_program
from bayesify.programs.serialized.symbolic_sizes import refuse_expression
from tests.files.edited_archives import rewritten


@pytest.mark.parametrize("damage", ["cut", "compressed", "twice", "no model", "weight too short"])
def test_a_damaged_archive_is_refused(damage, archive, tmp_path):
    path = tmp_path / "damaged.pt2"
    with zipfile.ZipFile(archive) as old:
        contents = {name: old.read(name) for name in old.namelist()}
    how = zipfile.ZIP_DEFLATED if damage == "compressed" else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", how) as new:
        for name, content in contents.items():
            if damage == "no model" and name.endswith("model.json"):
                continue
            new.writestr(name, content[:4] if damage == "weight too short" and name.endswith("weight_0") else content)
        if damage == "twice":
            new.writestr("other/models/model.json", b"{}")
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(FileRefusedError, match=str(path)):
        open_program(path)


@pytest.mark.parametrize("size", ["2**3", "Pow(Symbol('s0'), Integer(2))", "Mul(Integer(2), Symbol('s0'))", "1/s0"])
def test_sizes_that_are_arithmetic_pass(size):
    refuse_expression(size)


def of_weight(**changes):
    def edit(found):
        found["config"]["fc.weight"]["tensor_meta"].update(changes)

    return edit


MISFITS = {
    "sizes of another layer": of_weight(sizes=[{"as_int": 1}, {"as_int": 3}]),
    "more than the file has": of_weight(sizes=[{"as_int": 10**9}, {"as_int": 3}]),
    "repeated without end": of_weight(sizes=[{"as_int": 10**9}, {"as_int": 3}], strides=[{"as_int": 0}] * 2),
    "from before its start": of_weight(storage_offset={"as_int": -1}),
    "from behind its end": of_weight(storage_offset={"as_int": 1}),
}


@pytest.mark.parametrize("meta", [False, True])
@pytest.mark.parametrize("how", MISFITS)
def test_a_weight_that_does_not_fit_is_refused(how, meta, archive, tmp_path):
    name = "data/weights/model_weights_config.json"
    with zipfile.ZipFile(archive) as file:
        found = json.loads(file.read(f"net/{name}"))
    MISFITS[how](found)
    path = rewritten(archive, tmp_path, more={name: json.dumps(found)})
    with pytest.raises(FileRefusedError, match="save it again"):
        load(path, meta=meta)


def opens_as(content, path):
    """The weights of a file with this content, None if it is refused."""
    path.write_bytes(content)
    try:
        return load(path).state_dict()
    except FileRefusedError:
        return None


def test_flipped_bits_and_cuts_never_give_other_weights(archive, tmp_path):
    good, path, random = archive.read_bytes(), tmp_path / "damaged.pt2", Random(0)
    expected = opens_as(good, path)
    weight = expected["fc.weight"].numpy().tobytes()
    places = [random.randrange(len(good)) for _ in range(250)]
    places += [good.index(weight) + random.randrange(len(weight)) for _ in range(50)]
    refused = 0
    for place in places:
        damaged = bytearray(good)
        damaged[place] ^= 1 << random.randrange(8)
        opened = opens_as(bytes(damaged), path)
        refused += opened is None
        assert opened is None or all(torch.equal(opened[name], value) for name, value in expected.items())
    assert refused > 200
    assert all(opens_as(good[: random.randrange(len(good))], path) is None for _ in range(100))


def nested(form: str, times: int, inner: str = "s0") -> str:
    for number in range(times):
        inner = form.format(inner, number + 2)
    return inner


BOMBS = {
    "a maximum of many": f"Max({', '.join(f's{i}' for i in range(300))})",
    "magnitudes": nested("Abs({0}-{1})", 70),
    "comparisons": nested("Not(Xor({0}, Lt(s0, {1})))", 25, "Lt(s1, 2)"),
    "digits": "Float('1.5', precision=999999999)",
    "digits by place": "Float('1.5', 999999999)",
    "roundings": nested("floor({0}/{1})", 75),
    "a power of a sum": "(s0+s1+s2+s3+s4+s5)**8",
    "a power of a product": "(s0*s1*s2)**64",
    "powers of powers": "(((s0*s1*s2)**8)**8)**8",
    "a product of sums": "*".join(f"(s{i}+s{i + 1})" for i in range(0, 60, 2)),
    "a rest of a long sum": f"Mod({'+'.join(f'{i}*s0*s{i}' for i in range(90))}, 6)",
    "a rest of a product": "Mod((s0+1)**8*(s0+2)**8*(s0+3)**8*(s0+4)**8*(s1+1)**8, 3)",
}  # fmt: skip


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_size_that_would_take_sympy_long_is_refused(bomb, archive, tmp_path):
    def edit(program):
        sizes = program["graph_module"]["graph"]["tensor_values"]["x"]["sizes"]
        sizes[0] = {"as_expr": {"expr_str": BOMBS[bomb], "hint": None}}

    with pytest.raises(FileRefusedError, match="not arithmetic of symbols"):
        open_program(rewritten(archive, tmp_path, edit))


def test_many_sizes_that_take_a_while_each_are_refused(archive, tmp_path):
    def edit(program):
        values = program["graph_module"]["graph"]["tensor_values"]
        for number in range(40):
            size = {"as_expr": {"expr_str": f"Max(s77, {number})+Max(s77*s77, 7)", "hint": None}}
            values[f"x{number}"] = {**values["x"], "sizes": [size, {"as_int": 3}]}

    with pytest.raises(FileRefusedError, match="more sizes to compare"):
        open_program(rewritten(archive, tmp_path, edit))


@pytest.mark.parametrize(
    "size",
    [nested("Add(FloorDiv(Add({0}, Integer(-1)), Integer(2)), Integer(1))", 7), "Max(Integer(1), s0)", "Mod(s0*s1, 8)",
     "(s0+1)**2*s1", "+".join(f"s{i}" for i in range(200)), "CeilToInt(IntTrueDiv(s0, 3))", "s0*(s1//2)*(s2//2)*64"],
)  # fmt: skip
def test_sizes_of_real_models_pass(size):
    refuse_expression(size)
