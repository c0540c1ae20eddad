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
# From the door down: a room may import itself and the rooms in later lines.
ROOMS: tuple[tuple[str, ...], ...] = (
    ("__main__",),
    ("cli",),
    ("__init__",),
    ("safe_globals",),
    ("integrations",),
    ("figures",),
    ("exporting",),
    ("uncertainty",),
    ("surgery",),
    ("planning",),
    ("report",),
    ("decision", "findings"),
    ("analysis", "files", "policy"),
    ("programs",),
    ("nn",),
    ("functional",),
    ("distributions",),
    ("estimators",),
    ("errors",),
    ("escaping", "regex_limits"),
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
            # `from . import conv` names modules, `from .conv import ConvFamily` what is in one
            yield from ((f"{module}.{alias.name}", top) for alias in node.names)


def rooms_imported(path: Path) -> Iterator[tuple[str, bool]]:
    for module, top in imports(path):
        parts = module.split(".")
        if parts[0] == "bayesify" and len(parts) > 1 and parts[1] in LEVEL:
            yield parts[1], top


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down(path: Path) -> None:
    assert wrong_imports(path) == []


def wrong_imports(path: Path) -> list[str]:
    """The rooms that a file imports against the direction, at the top of the file or inside a function."""
    room = room_of(path)
    assert room in LEVEL, f"{room} has no place in the direction of imports yet"
    imported = (other for other, _ in rooms_imported(path))
    return [other for other in imported if other != room and LEVEL[other] <= LEVEL[room]]


def test_every_room_exists_and_a_planted_import_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The guard's own guard."""
    missing = {room for room in LEVEL if not any(room_of(path) == room for path in FILES)}
    assert missing <= {"integrations", "uncertainty"}
    monkeypatch.setattr("tests.test_architecture.ROOT", tmp_path)
    (tmp_path / "nn").mkdir()
    planted = tmp_path / "nn" / "conv.py"
    planted.write_text("from ..estimators import noise\n\ndef later():\n    from ..planning.planner import plan\n")
    assert wrong_imports(planted) == ["planning"]
    planted.write_text("from .. import surgery")
    assert wrong_imports(planted) == ["surgery"]


def test_no_circle_of_files() -> None:
    """Imports at the top of files, followed from file to file, never come back."""
    graph = {module_of(path): files_imported(path) for path in FILES}
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join((*trail[trail.index(module) :], module))
        if module not in done:
            for other in graph[module] - {module}:
                visit(other, (*trail, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def module_of(path: Path) -> str:
    """`bayesify/nn/conv.py` is `bayesify.nn.conv`."""
    return ".".join(["bayesify", *path.relative_to(ROOT).with_suffix("").parts]).removesuffix(".__init__")


def files_imported(path: Path) -> set[str]:
    """The files that a file imports at its top, as dotted modules."""
    known = {module_of(path) for path in FILES}
    named = {module for module, top in imports(path) if top and module.startswith("bayesify.")}
    found = {module if module in known else module.rpartition(".")[0] for module in named}
    return (found & known) - {"bayesify"}


@pytest.mark.parametrize("library", ["click", "rich"])
def test_who_may_import_what(library: str) -> None:
    allowed = {"click": {"cli"}, "rich": {"cli", "report"}}[library]
    users = {room_of(path) for path in FILES for module, _ in imports(path) if module.split(".")[0] == library}
    assert users <= allowed


def test_errors_import_nothing_of_ours_except_escaping() -> None:
    assert {room for room, _ in rooms_imported(ROOT / "errors.py")} == {"escaping"}
    assert not list(rooms_imported(ROOT / "escaping.py"))


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
        assert all(value.annotation is not value.empty for value in signature.parameters.values())
        assert "return" in thing.__annotations__
        return
    own = {key: member for key, member in vars(thing).items() if inspect.isfunction(member) and not key.startswith("_")}
    inherits = {
        key for base in thing.__mro__[1:] for key, member in vars(base).items() if getattr(member, "__doc__", None)
    }
    assert {key for key, member in own.items() if not member.__doc__} <= inherits


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_say_what_they_are_for_and_no_one_prints(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), "no docstring"
    calls = [node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    assert not {"print", "breakpoint"} & {*calls}
    raised = [node.exc for node in ast.walk(tree) if isinstance(node, ast.Raise)]
    assert "NotImplementedError" not in {getattr(getattr(error, "func", error), "id", "") for error in raised}


def test_importing_bayesify_imports_no_terminal() -> None:
    heavy = "{'rich', 'click', 'torchvision', 'transformers', 'torch._dynamo'}"
    code = [f"import sys, {package}; print({heavy} & {{*sys.modules}})" for package in ("bayesify", "torch")]
    ran = [subprocess.run([sys.executable, "-c", text], capture_output=True, text=True) for text in code]
    assert ran[0].returncode == 0, ran[0].stderr
    assert ran[0].stdout == ran[1].stdout
