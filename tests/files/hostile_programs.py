"""Exported programs that mean harm, by generators over all that a program may call and all that its text holds."""

import itertools
import json
from collections.abc import Iterator
from typing import Any

import torch

from bayesify.programs.serialized.operator_names import ATEN
from tests.files.made_programs import (
    Node,
    archive,
    changed,
    leaves,
    parts,
    planted,
    program_of,
    size,
    step,
    tensor,
    with_text,
    within,
)
from tests.files.pickle_text import Files

HUGE = 1 << 40
OTHERS = {
    "bool": {"as_bool": True}, "str": {"as_string": "none"}, "float": {"as_float": 1e300},
    "List[float]": {"as_floats": [1e300] * 2}, "List[bool]": {"as_bools": [True] * 2},
}  # fmt: skip
NUMBERS = ("int", "List[int]", "number")


def operators() -> Iterator[tuple[str, torch.FunctionSchema]]:
    """Every overload of every operator of aten that a program may call, but for those that write in place."""
    for name in sorted(name for name in ATEN if not name.endswith("_")):
        packet = getattr(torch.ops.aten, name, None)
        for overload in packet.overloads() if packet is not None else ():
            schema = getattr(packet, overload)._schema
            if not any(argument.is_out for argument in schema.arguments):
                yield f"torch.ops.aten.{name}.{overload}", schema


def kind(argument: torch.Argument) -> str:
    text = str(argument.type).replace("SymInt", "int").replace("Scalar", "number")
    return text.removeprefix("Optional[").removesuffix("]") if text.startswith("Optional[") else text


def called(target: str, schema: torch.FunctionSchema, numbers: int, data: str, sizes: int | None = None) -> Node | None:
    """A call with that number wherever one may stand, and that tensor where one must; None where that is no way."""
    whole, pair = {"as_int": numbers}, {"as_ints": [sizes or numbers] * 2}
    table = {**OTHERS, "int": whole, "number": whole, "List[int]": pair, "Tensor": tensor(data)}
    table["List[Tensor]"] = {"as_tensors": [{"name": data}] * 2}
    given = {}
    for argument in schema.arguments:
        if kind(argument) in NUMBERS or (kind(argument) in table and not argument.has_default_value()):
            given[argument.name] = table[kind(argument)]
        elif not argument.has_default_value():
            return None
    several = [tensor(name) for name in ("planted", "second", "third", "fourth")][: len(schema.returns)]
    lists = any(str(result.type).startswith("List") for result in schema.returns)
    made = step(target, out={"as_tensors": [{"name": "planted"}, {"name": "second"}]} if lists else "planted", **given)
    keywords = {argument.name for argument in schema.arguments if argument.kwarg_only}
    for each in made["inputs"]:
        each["kind"] = 2 if each["name"] in keywords else 1
    return made if lists or len(several) == 1 else {**made, "outputs": several, "name": "call"}


def bombs() -> Files:
    """Every operator with numbers for its sizes that take a few GB, on a weight: what a trace may compute by itself."""
    for target, schema in operators():
        node = called(target, schema, 1 << 29, "p_fc_weight", sizes=1 << 15)
        if node is not None and any(kind(argument) in NUMBERS for argument in schema.arguments):
            yield target, planted(node)
    for target in ("repeat", "expand", "unbind", "split", "tile", "repeat_interleave"):
        yield f"{target}, again and again", planted(*chain(target))


def chain(target: str, times: int = 40) -> Iterator[Node]:
    """An operator on its own result: a hundred times as many numbers each time, where it makes numbers."""
    hundred, name = {"as_ints": [100, 100]}, "p_fc_weight"
    for number in range(times):
        out = "planted" if number == times - 1 else f"part{number}"
        data = tensor(name)
        if target in ("unbind", "split"):
            many = {"as_tensors": [{"name": out}, *({"name": f"{out}_{other}"} for other in range(60))]}
            more = {"split_size": {"as_int": 1}} if target == "split" else {}
            overload = "int" if target == "unbind" else "Tensor"
            made = step(f"torch.ops.aten.{target}.{overload}", self=data, dim={"as_int": 0}, **more, out=many)
            yield {**made, "name": f"all_of_{out}"}
        elif target == "repeat_interleave":
            yield step("torch.ops.aten.repeat_interleave.self_int", self=data, repeats={"as_int": 100}, out=out)
        else:
            argument = {"repeat": "repeats", "tile": "dims", "expand": "size"}[target]
            yield step(f"torch.ops.aten.{target}.default", self=data, **{argument: hundred}, out=out)
        name = out


def calls() -> Files:
    """Some of all operators, of tensors and numbers that do not belong together."""
    kinds = itertools.product(operators(), ((-HUGE, "x"), (1, "x"), (0, "b_rows")))
    for (target, schema), (numbers, data) in itertools.islice(kinds, 0, None, 20):
        node = called(target, schema, numbers, data)
        if node is not None:
            yield f"{target} of {numbers} and {data}", planted(node)


BEGINNINGS = {
    "a number": step("torch.ops.aten.sym_size.int", self=tensor("x"), dim={"as_int": 0}, out=size("n0")),
    "a list": {
        **step("torch.ops.aten.unbind.int", self=tensor("x"), dim={"as_int": 0}, out={"as_tensors": [{"name": "row"}]}),
        "name": "n0",
    },
}  # fmt: skip
SINE = step("torch.ops.aten.sin.default", self=tensor("x"))


def arithmetic() -> Files:
    """Python's operators, whose numbers, lists and texts have no end."""
    big = {"as_int": 9**18}
    for operator in ("mul", "add", "pow"):
        for beginning, first in BEGINNINGS.items():
            steps = [on(operator, size(f"n{n}"), size(f"n{n}"), f"n{n + 1}") for n in range(60)]
            names = [f"n{n}" for n in range(61) if n or beginning == "a number"]
            yield f"{operator} of {beginning} and itself", planted(first, *steps, SINE, sizes=names)
        yield f"{operator} of large numbers", planted(on(operator, big, big), SINE, sizes=["n1"])
        yield f"{operator} of large numbers, in a branch", planted(within(on(operator, big, big), SINE), result="outer")
    texts = {"mod": [{"as_string": "%999999999d"}], "mul": [{"as_string": "x"}, {"as_ints": [1]}]}
    for operator, left in ((operator, left) for operator, all_left in texts.items() for left in all_left):
        made = on(operator, left, {"as_int": HUGE})
        yield f"{operator} of {next(iter(left))}", planted(made, SINE, sizes=["n1"])


def on(operator: str, left: Node, right: Node, out: str = "n1") -> Node:
    """A call of Python's operator; the node has its result's name."""
    return {**step(f"_operator.{operator}", left, right, out=size(out)), "name": out}


PLANTED = "open('ran','w')"
def foreign() -> dict[str, Node]:
    """Calls of what is no operator that programs may call, as far as that goes with arguments that fit."""
    whole, text = {"as_int": 0}, {"as_string": "touch ran"}
    named = {
        "aten.from_file.default": {"filename": text}, "aten.remainder.int": {"a": {"as_int": 1}, "b": whole},
        "aten.random.from": {"self": tensor("x"), "from": whole, "to": {"as_int": 9}},
        "aten.mul.left_t": {"l": {"as_ints": [1]}, "n": {"as_int": HUGE}}, "prim.device.default": {"a": tensor("x")},
    }  # fmt: skip
    plain = (
        "torch.os.system", "torch.ops.higher_order.while_loop", "torch.ops.higher_order.call_torchbind",
        "_operator.methodcaller", "builtins.eval", "math.factorial", "#mylib:run",
    )  # fmt: skip
    calls = {f"torch.ops.{name}": step(f"torch.ops.{name}", **given) for name, given in named.items()}
    return calls | {target: step(target, text) for target in plain}


def texts() -> Files:
    """Code in the place of each text of a program, and of a branch in it."""
    program = program_of(planted(within(SINE), result="outer"))
    for path, value in leaves(program):
        if isinstance(value, str):
            yield f"code at {'.'.join(map(str, path))}", with_program(changed(program, path, PLANTED))


def numbers() -> Files:
    """Other numbers, and other things, for each number of a program, and of what it says of its weights."""
    program = program_of(planted(within(SINE), result="outer"))
    weights = json.loads(parts()["small/data/weights/model_weights_config.json"])
    for what, whole, written in (("program", program, with_program), ("weights", weights, with_weights)):
        for path, value in leaves(whole):
            if not isinstance(value, str | None):
                for other in (-1, 1 << 62, 0.5, "s0"):
                    yield f"{other} at {what}.{'.'.join(map(str, path))}", written(changed(whole, path, other))


def nested(deep: int, node: Node) -> bytes:
    name = "planted"
    for level in range(deep):
        node = within(node, result=name, out=f"level{level}")
        name = f"level{level}"
    return planted(node, result=name)


def deep() -> Files:
    """Branches in branches, and more of them than any program has."""
    yield "branches 4 deep, 30 of them", nested(4, SINE)
    lists = "[" * 50_000 + "]" * 50_000
    text = json.dumps({**program_of(archive()), "range_constraints": 0}).replace("0", lists, 1)
    yield "lists 50,000 deep", with_text(text.encode())
    branches = [within(SINE, out=f"level{number}") for number in range(20)]
    yield "40 branches, one after the other", planted(*branches, result="level0")


def with_program(program: Any) -> bytes:
    return with_text(json.dumps(program).encode())


def with_weights(weights: Any) -> bytes:
    return archive(weights=lambda found: (found.clear(), found.update(weights)))


GENERATORS = {
    bombs: ("load",), texts: ("load", "run"), numbers: ("load", "run"), arithmetic: ("load", "run"), calls: ("run",),
    deep: ("load", "run"),
}  # fmt: skip
