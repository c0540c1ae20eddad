"""Programs of five libraries, converted on the command line by a process that can import none of these."""

import os
import pathlib
import subprocess
import sys

import pytest
import torch
from torch.export import Dim, export
from torch.utils import _pytree as pytree

import bayesify
from bayesify.files.load_model import load_model as load
from tests.models.zoo import ZOO

NAMES = {"torch": "nn.Transformer", "torchvision": "SqueezeNet", "timm": "ConvMixer", "transformers": "BERT",
         "diffusers": "U-Net"}  # fmt: skip

ALONE = """
import sys
for name in ("tests", "torchvision", "timm", "transformers", "diffusers"):
    sys.modules[name] = None
from bayesify.cli.commands import main
main(sys.argv[1:])
"""


def command(folder, *arguments):
    root = pathlib.Path(bayesify.__file__).parents[1]
    return subprocess.run(
        [sys.executable, "-c", ALONE, *arguments],
        capture_output=True, text=True, check=False, cwd=folder, env={**os.environ, "PYTHONPATH": str(root)},
    )  # fmt: skip


def tensors(output):
    return [each for each in pytree.tree_leaves(output) if isinstance(each, torch.Tensor) and each.is_floating_point()]


def exported(name):
    """The program, with a dynamic batch where the model lets it, and inputs as it takes them."""
    architecture = ZOO[name]
    model, given = architecture.built(), architecture.given()
    args, kwargs = ((), given) if isinstance(given, dict) else (given, {})
    sizes = pytree.tree_map(lambda each: {1 if name == NAMES["torch"] else 0: Dim.AUTO}, given)
    return export(model, args, kwargs, dynamic_shapes=sizes), args, kwargs


@pytest.mark.parametrize("method", ["flipout", "lrt"])
@pytest.mark.parametrize("library", NAMES)
def test_a_program_converts_without_the_library_that_it_is_of(library, method, tmp_path, vision):
    pytest.importorskip(library)
    program, args, kwargs = exported(NAMES[library])
    torch.export.save(program, tmp_path / "net.pt2")
    done = command(tmp_path, "convert", "net.pt2", "--method", method, "-o", "out.pt")
    assert done.returncode == 0, done.stderr
    model, expected = load(tmp_path / "out.pt"), tensors(program.module()(*args, **kwargs))
    with bayesify.posterior_mean(model):
        assert all(torch.equal(*pair) for pair in zip(tensors(model(*args, **kwargs)), expected, strict=True))
    torch.manual_seed(2)
    noisy = tensors(model(*args, **kwargs))
    assert not torch.equal(noisy[0], expected[0])
    sum((output * torch.randn_like(output)).sum() for output in noisy).backward()
    scales = {name: parameter.grad for name, parameter in model.named_parameters() if name.endswith("_rho")}
    assert not [name for name, grad in scales.items() if grad is None or not grad.abs().sum()]
    assert 0 < model.kl() < float("inf")
    assert command(tmp_path, "revert", "out.pt", "-o", "plain.pt").returncode == 0
    plain = load(tmp_path / "plain.pt")
    assert all(torch.equal(*pair) for pair in zip(tensors(plain(*args, **kwargs)), expected, strict=True))
