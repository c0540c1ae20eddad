"""The house rules, read from the code: who imports whom, how long things are, and what has a docstring."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import bayesify

ROOT = Path(bayesify.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
# From the door down: a room may import what stands in a later line, or in its own.
ROOMS: tuple[tuple[str, ...], ...] = (
    ("__main__", "__init__"),
    ("cli",),
    ("terminal",),
    ("report",),
    ("lines",),
    ("fold",),
    ("io",),
    ("predict",),
    ("surgery",),
    ("start", "optim", "ties"),
    ("plan",),
    ("rows",),
    ("notes",),
    ("parents", "wrappers"),
    ("blockers",),
    ("examples",),
    ("sites",),
    ("uses",),
    ("computing",),
    ("alone",),
    ("unknowns",),
    ("graph",),
    ("programs",),
    ("claims",),
    ("policy",),
    ("policy_parts",),
    ("policy_file",),
    ("policy_errors",),
    ("policy_values",),
    ("selector_help",),
    ("select",),
    ("kl",),
    ("nn",),
    ("functional",),
    ("estimators",),
    ("products",),
    ("prior",),
    ("posterior",),
    ("noise",),
    ("errors",),
)
LEVEL = {room: level for level, rooms in enumerate(ROOMS) for room in rooms}


def room_of(path: Path) -> str:
    """`bayesify/nn/conv.py` is in the room `nn`."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """(dotted module, whether at the top of the file) for every import in a file, relative ones made absolute."""
    package = ["bayesify", *path.relative_to(ROOT).parts[:-1]]
    tree = ast.parse(path.read_text())
    lazily = {
        id(node) for function in ast.walk(tree) if isinstance(function, ast.FunctionDef) for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        top = id(node) not in lazily
        if isinstance(node, ast.Import):
            yield from ((alias.name, top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*start, *([node.module] if node.module else [])])
            names = [f"{module}.{alias.name}" for alias in node.names]
            # `from . import conv` names modules, `from .conv import ConvFamily` what is in one
            yield from ((name if module in ("bayesify", "bayesify.nn") else module, top) for name in names)


def rooms_imported(path: Path) -> Iterator[tuple[str, bool]]:
    for module, top in imports(path):
        parts = module.split(".")
        if parts[0] == "bayesify" and len(parts) > 1 and parts[1] in LEVEL:
            yield parts[1], top


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down(path: Path) -> None:
    room = room_of(path)
    assert room in LEVEL, f"{room} has no place in the direction of imports yet"
    for other, top in rooms_imported(path):
        if top:
            assert other == room or LEVEL[other] > LEVEL[room], f"{room} imports {other}, which stands above it"


def test_one_import_inside_a_function_goes_up() -> None:
    """A plan prints itself by the report, which needs rich."""
    found = {
        (room_of(path), other)
        for path in FILES
        for other, top in rooms_imported(path)
        if not top and LEVEL[other] <= LEVEL[room_of(path)] and other != room_of(path)
    }
    assert found <= {("rows", "report")}


def test_the_reader_of_imports_reads_them() -> None:
    """The guard's own guard."""
    assert {"plan", "kl", "nn", "errors"} <= {room for room, _ in rooms_imported(ROOT / "surgery.py")}
    assert ("report", False) in set(rooms_imported(ROOT / "rows.py"))
    assert {"nn", "errors", "posterior"} <= {room for room, _ in rooms_imported(ROOT / "nn" / "variational.py")}
    assert {"nn"} <= {room for room, _ in rooms_imported(ROOT / "nn" / "registry.py")}


@pytest.mark.parametrize("library", ["click", "rich"])
def test_who_may_import_what(library: str) -> None:
    allowed = {"click": {"cli", "terminal"}, "rich": {"cli", "terminal", "report"}}[library]
    users = {room_of(path) for path in FILES for module, _ in imports(path) if module.split(".")[0] == library}
    assert users <= allowed


def test_errors_import_nothing_of_ours() -> None:
    assert not list(rooms_imported(ROOT / "errors.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_functions_and_lines_are_short(path: Path) -> None:
    text = path.read_text()
    lines = text.splitlines()
    assert len(lines) <= 300
    assert [number for number, line in enumerate(lines, 1) if len(line) > 120] == []
    functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    long = {node.name: node.end_lineno - node.lineno + 1 for node in functions if node.end_lineno}
    assert {name: length for name, length in long.items() if length > 40} == {}


def public_things() -> Iterator[tuple[str, Any]]:
    functional = [name for name in vars(bayesify.functional) if name.startswith(("flipout_", "lrt_"))]
    for module, names in (
        (bayesify, bayesify.__all__),
        (bayesify.nn, bayesify.nn.__all__),
        (bayesify.functional, functional),
    ):
        for name in names:
            thing = getattr(module, name)
            if inspect.isclass(thing) or inspect.isfunction(thing):
                yield f"{module.__name__}.{name}", thing


THINGS = dict(public_things())


@pytest.mark.parametrize("name", THINGS)
def test_the_public_surface_is_documented_and_typed(name: str) -> None:
    thing = THINGS[name]
    assert thing.__doc__, "no docstring"
    if inspect.isfunction(thing):
        signature = inspect.signature(thing)
        assert all(each.annotation is not each.empty for each in signature.parameters.values())
        assert "return" in thing.__annotations__
        return
    own = {key: each for key, each in vars(thing).items() if inspect.isfunction(each) and not key.startswith("_")}
    inherits = {key for base in thing.__mro__[1:] for key, each in vars(base).items() if getattr(each, "__doc__", None)}
    assert {key for key, each in own.items() if not each.__doc__} <= inherits


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_say_what_they_are_for_and_no_one_prints(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), "no docstring"
    calls = [node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    assert not {"print", "breakpoint"} & {*calls}
    raised = [node.exc for node in ast.walk(tree) if isinstance(node, ast.Raise)]
    assert "NotImplementedError" not in {getattr(getattr(each, "func", each), "id", "") for each in raised}


def test_importing_bayesify_imports_no_terminal() -> None:
    heavy = "{'rich', 'click', 'torchvision', 'transformers', 'torch._dynamo'}"
    code = [f"import sys, {each}; print({heavy} & {{*sys.modules}})" for each in ("bayesify", "torch")]
    ran = [subprocess.run([sys.executable, "-c", each], capture_output=True, text=True) for each in code]
    assert ran[0].returncode == 0, ran[0].stderr
    assert ran[0].stdout == ran[1].stdout
