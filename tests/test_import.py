"""`import bayesify` and the command line: what they import, what they register, and which names are there."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import bayesify

ROOT = Path(bayesify.__file__).parents[1]
COMMAND = "import sys\nfrom bayesify.cli.commands import main\nmain(sys.argv[1:], standalone_mode=False)\n"
NO_TORCH = "assert not {'torch', 'numpy'} & {*sys.modules}, 'torch was imported'\n"


def run(code: str, *arguments: object) -> str:
    """What a new interpreter prints."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["convert", "--help"],
        ["report", "--help"],
        ["revert", "--help"],
        ["policy", "show"],
        ["policy", "show", "moped"],
        ["policy", "schema"],
        ["policy", "check", ROOT / "configs/last-layer.yaml"],
    ],
    ids=lambda arguments: " ".join(map(str, arguments[:2])),
)
def test_these_commands_answer_without_torch(arguments: list[object]) -> None:
    assert run(COMMAND + NO_TORCH, *arguments)


def test_checking_a_policy_of_every_kind_of_selector_needs_no_torch(tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text("rules:\n  - targets: [Linear, 'type:torch.nn.Conv2d', '**.fc?', 're:a.*', last, layer1]\n")
    assert "1 rule" in run(COMMAND + NO_TORCH, "policy", "check", file)


def test_importing_bayesify_alone_imports_no_torch() -> None:
    run(f"import sys, bayesify\n{NO_TORCH}assert bayesify.errors.PolicyError and bayesify.BayesifyError")


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("files") / "converted.pt"
    torch.save(bayesify.convert(nn.Linear(3, 2), "flipout"), path)
    return path


@pytest.mark.parametrize(
    "imports",
    [
        "import torch, bayesify",
        "import bayesify, torch",
        "from bayesify.nn.linear import FlipoutLinear; import torch",
        "from bayesify.distributions.posterior import Posterior; import torch",
        "from bayesify import convert; import torch",
    ],
)
def test_whatever_is_imported_first_torch_may_build_what_a_converted_model_holds(imports: str, converted: Path) -> None:
    code = f"{imports}\nimport sys\nprint(type(torch.load(sys.argv[1], weights_only=True)).__name__)"
    assert run(code, converted) == "FlipoutLinear\n"


def test_without_bayesify_torch_builds_none_of_it(converted: Path) -> None:
    code = "import torch, sys, pickle\ntry: torch.load(sys.argv[1], weights_only=True)\n"
    assert run(f"{code}except pickle.UnpicklingError: print('refused')", converted) == "refused\n"


def test_the_finder_leaves_when_it_is_done() -> None:
    code = "import sys, bayesify\nbefore = len(sys.meta_path)\nimport torch\nprint(before - len(sys.meta_path))"
    assert run(code) == "1\n"


def test_every_public_name_is_there_and_is_listed() -> None:
    for name in bayesify.__all__:
        assert getattr(bayesify, name) is not None
    assert {*bayesify.__all__} <= {*dir(bayesify)}
    assert not hasattr(bayesify, "no_such_name")
    with pytest.raises(AttributeError, match="no attribute '_nothing'"):
        bayesify._nothing()
    code = "from bayesify import *\nimport bayesify\nprint(sorted(n for n in bayesify.__all__ if n not in globals()))"
    assert run(code) == "[]\n"


def test_functions_stay_functions_and_modules_are_there_by_their_own_names() -> None:
    code = "import bayesify.planning.planner, bayesify.nn.kl, bayesify.files.load_model, bayesify.files.save\n"
    names = "plan", "kl", "load", "save", "convert", "register"
    kinds = "".join(f"assert bayesify.{name}.__class__.__name__ == 'function'\n" for name in names)
    modules = "print(bayesify.nn.FlipoutLinear.__name__, bayesify.functional.lrt_linear, bayesify.surgery.__name__)"
    assert run(code + kinds + modules).startswith("FlipoutLinear <function lrt_linear at")
