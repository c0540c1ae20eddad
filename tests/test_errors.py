"""Whatever a user can meet is a `BayesifyError`: read from every `raise` in the package."""

import ast
import builtins
from collections.abc import Iterator
from pathlib import Path

import pytest

import bayesify
from bayesify import errors
from bayesify.errors import BayesifyError

ROOT = Path(bayesify.__file__).parent

# (file, exception): why no user meets it.
NEVER_MET = {
    ("__init__.py", "AttributeError"): "Python's own protocol: hasattr asks for it",
    ("distributions/__init__.py", "AttributeError"): "Python's own protocol: hasattr asks for it",
    ("analysis/proxies.py", "AttributeError"): "Python's own protocol: the model's code under the tracer asks for it",
    ("nn/registry.py", "AttributeError"): "Python's own protocol: pickle asks a module for a name",
    ("files/untrusted/everyday_rules.py", "ValueError"): "caught in the same file, which refuses the value",
    ("files/untrusted/model_builder.py", "TypeError"): "caught in the same function",
    ("files/untrusted/safetensors_file.py", "ValueError"): "caught in the same file, which names the damage",
    ("files/json_file.py", "ValueError"): "caught in the same file, which names the damage",
    ("files/whole_folder.py", "FileExistsError"): "turned into UsageError by save, which names the folder in the way",
    ("files/whole_file.py", "FileExistsError"): "turned into UsageError by save, which names the file in the way",
    ("nn/signatures.py", "KeyError"): "the protocol of a table of modules, which torch.fx looks a name up in",
    ("programs/serialized/symbolic_sizes.py", "ValueError"): "caught in the same file, which refuses the program",
    ("programs/serialized/checked_strings.py", "ValueError"): "caught in the same file, which refuses the program",
}
# Exceptions of ours that are not BayesifyErrors: why no user meets them.
INTERNAL = {
    "NotTraceableError": "ends a trace; the plan blocks the module with its text as the reason",
    "TooMuchWorkError": "ends a trace, as NotTraceableError does",
    "MalformedPickleError": "turned into FileRefusedError with the file's name",
    "SelectorError": "turned into PolicyError with the rule and the line",
    "_NotPartedError": "has predict draw otherwise",
    "_RefusedError": "turned into PolicyError with the file's name",
}


def raised(path: Path) -> Iterator[str]:
    """The names of the exceptions that a file raises, calls of helpers that make one left out."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Raise) and node.exc is not None:
            made = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
            name = ast.unparse(made)
            if name[:1].isupper() or (name.startswith("_") and name[1:2].isupper()):
                yield name


FILES = {str(path.relative_to(ROOT)): path for path in sorted(ROOT.rglob("*.py"))}


@pytest.mark.parametrize("file", FILES)
def test_what_is_raised_is_one_of_ours_or_is_never_met(file: str) -> None:
    for name in raised(FILES[file]):
        if hasattr(builtins, name):
            assert name == "AssertionError" or (file, name) in NEVER_MET, f"raise one of bayesify's errors, not {name}"
        else:
            cls = getattr(errors, name, None)
            assert name in INTERNAL or issubclass(cls or Exception, BayesifyError), f"{name} is not in errors.py"


def test_the_reasons_are_for_raises_that_are_there() -> None:
    every = {(file, name) for file, path in FILES.items() for name in raised(path)}
    assert NEVER_MET.keys() <= every
    assert INTERNAL.keys() <= {name for _, name in every}


def test_a_planted_raise_is_seen(tmp_path: Path) -> None:
    planted = tmp_path / "planted.py"
    planted.write_text("def f(x):\n    if x:\n        raise ValueError('x')\n    raise helper(x) from None\n")
    assert list(raised(planted)) == ["ValueError"]


def test_every_error_is_a_bayesify_error_and_has_an_exit_code() -> None:
    classes = [cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, BaseException)]
    assert len(classes) > 8
    for cls in classes:
        assert issubclass(cls, BayesifyError)
        assert cls.exit_code in (1, 2, 3, 4)
        assert cls.__doc__
